"""The raw prompts of a session, which have no messages: which recorded completion a new one continues.

A prompt continues a completion if it begins with that one's prompt and what its client was shown of the answer, as a
text or as token ids.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import insort
from collections.abc import Sequence

from agentrl.errors import GatewayError
from agentrl.gateway.conversations import Continuation, Turn
from agentrl.tokens.vocabulary import Vocabulary

__all__ = ["Prompts", "prompt_ids"]


class Prompts:
    """Completed prompts. Not thread-safe: its session serialises access."""

    def __init__(self) -> None:
        self._texts, self._ids = _Beginnings(), _Beginnings()

    def add(self, text: str, ids: Sequence[int], turn: Turn) -> None:
        """Record ``turn`` under its prompt and answer, as the ``text`` and the ``ids`` that its client knows of."""
        self._texts.add(_of_text(text), turn)
        self._ids.add(_of_ids(ids), turn)

    def find(self, prompt: str | Sequence[int]) -> tuple[Turn | None, int]:
        """The longest completion that ``prompt`` continues, and how many of its characters or ids are of that."""
        if not isinstance(prompt, str):
            turns, length = self._ids.find(_of_ids(prompt))
            return _least_continued(turns), length // array("q").itemsize
        written = _of_text(prompt)
        turns, length = self._texts.find(written)
        return _least_continued(turns), len(written[:length].decode("utf-8", "surrogatepass"))


def _of_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _of_ids(ids: Sequence[int]) -> bytes:
    return array("q", ids).tobytes()


def _least_continued(turns: Sequence[Turn]) -> Turn | None:
    """One of several turns that read alike, so that each of them is continued once."""
    return min(turns, key=lambda turn: (not turn.delivered, turn.continued, turn.digest), default=None)


def prompt_ids(
    prompt: str | Sequence[int], continues: Continuation, vocabulary: Vocabulary, known: int | None
) -> list[int]:
    """The token ids of a raw prompt: those of the completion that it continues, and of what it adds to them.

    ``known`` is how many ids the model knows, if that is known. Raises ``GatewayError`` (400) for a prompt without any
    token, or with one that the model does not know.
    """
    turn, history = continues.match.turn, continues.history
    if turn is not None and turn.position is not None:
        recorded = [*history.prompt, *history.completion]
        rest = prompt[continues.known :]
        ids = recorded + (vocabulary.encode_after(recorded[-1], rest) if isinstance(rest, str) else list(rest))
    else:
        ids = [*vocabulary.opening, *vocabulary.encode(prompt)] if isinstance(prompt, str) else list(prompt)
    if not ids:
        raise GatewayError("prompt holds no token", param="prompt", code="invalid_value", fix="say what to complete")
    if known is not None and not 0 <= min(ids) <= max(ids) < known:
        raise GatewayError(
            f"prompt holds an id that the model does not know: its ids go from 0 to {known - 1}",
            param="prompt",
            code="invalid_value",
        )
    return ids


class _Beginnings:
    """Turns by bytes that a longer sequence may begin with; finding takes time in proportion to that sequence."""

    def __init__(self) -> None:
        self._turns: dict[bytes, list[Turn]] = {}
        self._lengths: list[int] = []

    def add(self, data: bytes, turn: Turn) -> None:
        if len(data) not in self._lengths:
            insort(self._lengths, len(data))
        self._turns.setdefault(hashlib.blake2b(data, digest_size=16).digest(), []).append(turn)

    def find(self, data: bytes) -> tuple[Sequence[Turn], int]:
        """The turns of the longest beginning of ``data`` that is known, and its length."""
        best: tuple[Sequence[Turn], int] = ((), 0)
        read, digest = 0, hashlib.blake2b(digest_size=16)
        for length in self._lengths:
            if length > len(data):
                break
            digest.update(data[read:length])
            read = length
            if (turns := self._turns.get(digest.copy().digest())) is not None:
                best = (turns, length)
        return best
