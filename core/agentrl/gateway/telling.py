"""The sampling side of a streamed answer: what an engine has sampled so far becomes the deltas of a message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agentrl.gateway.contract import CallDelta, Delta, Tokens
from agentrl.inference.contract import Chunk
from agentrl.tokens.incremental import Added, IncrementalParser

__all__ = ["Telling", "delta", "joined"]


class Telling:
    """Tells a stream what is sampled. Tokens that come faster than the event loop turns are told together."""

    def __init__(
        self,
        tell: Callable[[Delta], None],
        parser: IncrementalParser,
        tokens: Callable[[Chunk, int | None], Tokens] | None,
        prompt_tokens: int,
    ) -> None:
        """``tokens`` gives what is reported of the tokens of a chunk, from it and the id before it, if anything is."""
        self.chunks: list[Chunk] = []
        self._tell = tell
        self._parser = parser
        self._tokens = tokens
        self._prompt_tokens = prompt_tokens
        self._told = 0
        self._handle: asyncio.Handle | None = None

    def soon(self, chunk: Chunk) -> None:
        """Tell ``chunk``, the newest of ``chunks``, as soon as the event loop turns."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self.now)

    def now(self) -> None:
        """Tell the chunks that were not told yet."""
        self.stop()
        if self._told == len(self.chunks):
            return
        new = joined(self.chunks[self._told :])
        before = self.chunks[self._told - 1].ids[-1] if self._told else None
        first, self._told = not self._told, len(self.chunks)
        added = self._parser.feed(new.ids)
        tokens = self._tokens(new, before) if self._tokens is not None else Tokens()
        if added or tokens.ids or first:
            self._tell(delta(added, tokens, self._prompt_tokens))

    def stop(self) -> None:
        """Tell nothing by itself any more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """The chunks of a completion, or of a part of it, as one."""
    if len(chunks) == 1:
        return chunks[0]
    return Chunk(
        ids=tuple(token for chunk in chunks for token in chunk.ids),
        logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        versions=tuple(version for chunk in chunks for version in chunk.versions),
        top_logprobs=tuple(top for chunk in chunks for top in chunk.top_logprobs),
        finish=chunks[-1].finish if chunks else None,
        stop_string=chunks[-1].stop_string if chunks else None,
        first_token=chunks[0].first_token if chunks else None,
    )


def delta(added: Added, tokens: Tokens, prompt_tokens: int) -> Delta:
    """What a parser has found, as the gateway tells it. ``prompt_tokens`` is the length of the prompt."""
    calls = tuple(CallDelta(call.index, call.id, call.name, call.arguments) for call in added.calls)
    return Delta(0, added.reasoning, added.content, calls, tokens, prompt_tokens)
