"""A parser of one completion that is fed its ids while they are sampled."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agentrl.tokens.incremental.completion import completion
from agentrl.tokens.incremental.gate import Gate
from agentrl.tokens.incremental.notation import Notation, Opened
from agentrl.tokens.incremental.part import Part
from agentrl.tokens.incremental.source import Source, Steps
from agentrl.tokens.incremental.told import Added, Told
from agentrl.tokens.template import Message
from agentrl.tokens.vocabulary import Vocabulary

__all__ = ["IncrementalParser"]


class IncrementalParser:
    """Parses one completion, for one caller at a time."""

    def __init__(
        self,
        notation: Notation | None,
        vocabulary: Vocabulary,
        opened: Opened,
        *,
        tools: bool,
        call_ids: str,
        stop: Collection[str] = (),
    ) -> None:
        """``tools`` says whether tools are offered. ``stop`` are the strings that end a completion; the message has
        no text from the first of them on."""
        self._told = Told(call_ids)
        self._gate = Gate(notation.pieces, stop) if notation is not None and stop else None
        self._steps: Steps[None] | None = None
        if notation is not None:
            source = Source(notation.pieces, notation.stop_ids)
            self._steps = completion(Part(notation, vocabulary, source, self._told, tools), opened)
            next(self._steps)

    def feed(self, ids: Sequence[int]) -> Added:
        """Return what the next ``ids`` of the completion add to the message."""
        self._send(ids if self._gate is None else self._gate.passed(ids))
        return self._told.new()

    def end(self, message: Mapping[str, Any]) -> Added:
        """Return what is missing to ``message``, which is what ``Renderer.parse`` returns for the whole completion."""
        return self._told.rest(message)

    @property
    def knows(self) -> bool:
        """Whether it knows how the completion is written. Where it does not, ``end`` gives everything."""
        return self._steps is not None

    def conclude(self) -> Message:
        """Return the message of all ids that were fed, with what cannot be told apart as content."""
        self._send(None)
        self._told.new()
        return self._told.message()

    def _send(self, ids: Sequence[int] | None) -> None:
        if self._steps is None:
            return
        try:
            self._steps.send(ids)
        except StopIteration:
            self._steps = _nothing_more()
            next(self._steps)


def _nothing_more() -> Steps[None]:
    while True:
        yield
