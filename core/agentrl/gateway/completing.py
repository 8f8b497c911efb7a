"""The boundary to an inference backend: a request in, its whole completion out."""

from __future__ import annotations

from contextlib import aclosing

from agentrl.errors import AgentRLError, BackendError
from agentrl.inference.contract import Backend, Chunk, GenerationRequest

__all__ = ["generate"]


async def generate(backend: Backend, request: GenerationRequest) -> Chunk:
    """The whole completion as one chunk, as the backend gave it; whatever a plugin raises is its failure."""
    try:
        async with aclosing(backend.generate(request)) as stream:
            chunks = [chunk async for chunk in stream]
    except AgentRLError:
        raise
    except Exception as error:
        raise BackendError(f"the inference backend failed: {type(error).__name__}: {error}") from error
    return chunks[0] if len(chunks) == 1 else _joined(chunks)


def _joined(chunks: list[Chunk]) -> Chunk:
    return Chunk(
        ids=tuple(token for chunk in chunks for token in chunk.ids),
        logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        versions=tuple(version for chunk in chunks for version in chunk.versions),
        top_logprobs=tuple(top for chunk in chunks for top in chunk.top_logprobs),
        finish=chunks[-1].finish if chunks else None,
        stop_string=chunks[-1].stop_string if chunks else None,
    )
