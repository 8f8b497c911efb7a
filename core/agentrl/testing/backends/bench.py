"""A backend that runs, and the model that its tokens are held against."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agentrl.inference.contract import Backend, BackendContext, Capabilities, Chunk, GenerationRequest, Sampling
from agentrl.plugins import Plugins
from agentrl.testing.backends.reference import Reference, load_reference
from agentrl.testing.looping import LoopThread
from agentrl.testing.parts import PartName, as_part, told
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer

if TYPE_CHECKING:
    import torch

__all__ = ["Bench", "Compared", "ask", "bench", "build_backend", "joined", "read"]

Result = TypeVar("Result")

QUESTIONS = (
    "What is 12 + 30?",
    "What is 7 * 8? Say it in words, please, and then once more as a number.",
    "Hello",
    "What is 12 + 31?",
    "Tell me about the sea.",
    "12 12 12 12 12 12 12 12",
)


def build_backend(
    backend: PartName, options: Mapping[str, Any], folder: Path, *, version: int = 0, concurrency: int
) -> Backend:
    """The backend that a suite names, not started."""
    named = {"name": backend} if isinstance(backend, str) else backend
    part = as_part({**named, **options})
    context = BackendContext(folder, version=version, max_concurrency=concurrency, options=part.options)
    built: Backend = Plugins().build("backends", part, context=context)
    return built


def ask(prompt: Sequence[int], *, stream: bool = False, **sampling: Any) -> GenerationRequest:
    """A request for one completion."""
    return GenerationRequest(prompt, Sampling(**sampling), stream=stream)


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """Chunks of one completion as one."""
    return Chunk(
        ids=tuple(token for chunk in chunks for token in chunk.ids),
        logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        versions=tuple(version for chunk in chunks for version in chunk.versions),
        top_logprobs=tuple(top for chunk in chunks for top in chunk.top_logprobs),
        finish=chunks[-1].finish,
        stop_string=chunks[-1].stop_string,
    )


async def read(backend: Backend, request: GenerationRequest) -> Chunk:
    """One completion, whole. Fails where its chunks are none."""
    async with aclosing(backend.generate(request)) as stream:
        chunks = [chunk async for chunk in stream]
    assert chunks, "a completion ended without a chunk"
    assert [chunk.finish is None for chunk in chunks[:-1]] == [True] * (len(chunks) - 1), "`finish` is set too early"
    assert chunks[-1].finish is not None, "the last chunk of a completion does not say why it ended"
    return joined(chunks)


@dataclass(frozen=True, slots=True)
class Compared:
    """A completion, and the log-probabilities ``[tokens, vocabulary]`` that the model gives at its positions."""

    prompt: list[int]
    chunk: Chunk
    expected: torch.Tensor

    @property
    def chosen(self) -> torch.Tensor:
        """Of them, the sampled tokens' ``[tokens]``."""
        return self.expected[range(len(self.chunk.ids)), list(self.chunk.ids)]

    @property
    def off_by(self) -> float:
        """The largest distance of a token's logprob from the model's."""
        return float((self.chosen - self.chosen.new_tensor(self.chunk.logprobs)).abs().max())

    @property
    def behind(self) -> float:
        """How far a token's logprob, as the model gives it, is at most below the likeliest's."""
        return float((self.expected.amax(1) - self.chosen).max())


class Bench:
    """A started backend; ``reference`` is the model whose weights it has now."""

    def __init__(self, backend: Backend, reference: Reference, timeout: float) -> None:
        self.backend = backend
        self.reference = reference
        self.timeout = timeout
        self.loop = LoopThread()
        self.capabilities: Capabilities
        self.renderer: Renderer = load_renderer(reference.folder)

    def run(self, main: Coroutine[Any, Any, Result], what: str = "the backend") -> Result:
        """What ``main`` returns; fails the test where it takes too long."""
        return self.loop.run(main, deadline_s=self.timeout, what=what)

    def complete(self, *requests: GenerationRequest) -> list[Chunk]:
        """Completions of ``requests``, all at once. Raises what one of them raises."""

        async def together() -> list[Chunk]:
            return await asyncio.gather(*(read(self.backend, request) for request in requests))

        return self.run(together(), f"{len(requests)} completions")

    def outcomes(self, *requests: GenerationRequest) -> list[Chunk | BaseException]:
        """As ``complete``, with what a request raised in its place."""

        async def together() -> list[Chunk | BaseException]:
            return await asyncio.gather(*(read(self.backend, each) for each in requests), return_exceptions=True)

        return self.run(together(), f"{len(requests)} completions")

    def sample(self, **sampling: Any) -> list[Compared]:
        """A completion of every prompt, all at once, beside what the model says of it."""
        prompts = self.prompts()
        requests = [ask(prompt, **self.seed(number), **sampling) for number, prompt in enumerate(prompts)]
        temperature = sampling.get("temperature", 1.0) or 1.0
        return [
            Compared(prompt, chunk, self.reference.logprobs(prompt, chunk.ids, temperature))
            for prompt, chunk in zip(prompts, self.complete(*requests), strict=True)
        ]

    def seed(self, number: int) -> dict[str, Any]:
        """A seed for a request, where the backend honours one."""
        return {"seed": number} if "seed" in self.capabilities.sampling else {}

    def update(self, new: Reference | None = None) -> Reference:
        """Put other weights in place, by default of no use; returns the model of the old ones."""
        old, self.reference = self.reference, new or self.reference.changed()
        self.run(self.backend.update_weights(self.reference.weights), "the update of the weights")
        return old

    def prompts(self, count: int = len(QUESTIONS)) -> list[list[int]]:
        """Prompts of several lengths, two of which begin alike."""
        return [self.renderer.render([{"role": "user", "content": text}]) for text in QUESTIONS[:count]]

    @property
    def vocabulary(self) -> int:
        """How many token ids the model knows."""
        return int(self.reference.model.config.vocab_size)


@contextmanager
def bench(build: Callable[[Path], Backend], folder: Path, *, timeout: float, start_timeout: float) -> Iterator[Bench]:
    """Start a backend on a model folder, and stop it at the end."""
    table = Bench(build(folder), load_reference(folder), timeout)
    try:
        started = table.backend.start()
        with told():
            table.capabilities = table.loop.run(started, deadline_s=start_timeout, what="the backend's start")
        yield table
    finally:
        table.loop.run(table.backend.stop(), deadline_s=start_timeout, what="the backend's stop")
        table.loop.close()
