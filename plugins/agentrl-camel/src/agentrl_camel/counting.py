"""Counting tokens without a tokenizer: CAMEL's own counter downloads one."""

from __future__ import annotations

from camel.messages import OpenAIMessage
from camel.utils import BaseTokenCounter

__all__ = ["COUNTER", "RoughCounter"]

_BYTES = 4
"""Of UTF-8 that count as one token, as in English text."""


class RoughCounter(BaseTokenCounter):
    """Says roughly how long a text is, which is all that CAMEL asks: it cuts tool results that exceed its limit."""

    def count_tokens_from_messages(self, messages: list[OpenAIMessage]) -> int:
        """About as many as any tokenizer gives for the messages' texts."""
        return sum(len(str(message.get("content"))) // _BYTES + 1 for message in messages)

    def encode(self, text: str) -> list[int]:
        """A number for every four bytes."""
        data = text.encode(errors="surrogatepass")
        return [int.from_bytes(b"\1" + data[start : start + _BYTES]) for start in range(0, len(data), _BYTES)]

    def decode(self, token_ids: list[int]) -> str:
        """The text that ``encode`` made these numbers of."""
        parts = (token.to_bytes(_BYTES + 1).lstrip(b"\0")[1:] for token in token_ids)
        return b"".join(parts).decode(errors="surrogatepass")


COUNTER = RoughCounter()
