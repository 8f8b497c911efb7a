"""Which of the sampled tokens a text is made of."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace

from agentrl.gateway.contract import Tokens

__all__ = ["Spoken"]


class Spoken:
    """The tokens of an answer, from which its texts are taken in the order in which they were sampled."""

    def __init__(self) -> None:
        self.taken = 0
        """How many tokens there are up to the end of what has been taken."""
        self._tokens = Tokens()
        self._bytes = bytearray()
        self._ends: list[int] = []
        self._from = 0

    def add(self, tokens: Tokens) -> None:
        """Add the tokens that were sampled next."""
        before = tokens.before
        for token in tokens.ids:
            self._bytes += tokens.piece(token, before)
            self._ends.append(len(self._bytes))
            before = token
        known = self._tokens
        self._tokens = replace(
            known if known.ids else tokens,
            ids=known.ids + tokens.ids,
            logprobs=known.logprobs + tokens.logprobs,
            top_logprobs=known.top_logprobs + tokens.top_logprobs,
        )

    def take(self, text: str) -> Tokens:
        """The tokens of ``text``, which follows what has been taken before.

        What is in between, such as marks and white space, is passed over. A token that two texts share is part of the
        first. None are found for a text that the tokens do not spell.
        """
        raw = text.encode(errors="replace")
        at = self._bytes.find(raw, self._from) if raw else -1
        if at < 0:
            return Tokens()
        self._from = at + len(raw)
        first = max(self.taken, bisect_right(self._ends, at))
        self.taken = max(self.taken, bisect_left(self._ends, self._from) + 1)
        all_of_them, chosen = self._tokens, slice(first, self.taken)
        return replace(
            all_of_them,
            ids=all_of_them.ids[chosen],
            logprobs=all_of_them.logprobs[chosen],
            top_logprobs=all_of_them.top_logprobs[chosen],
            before=all_of_them.ids[first - 1] if first else all_of_them.before,
        )
