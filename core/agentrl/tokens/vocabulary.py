"""A tokenizer as renderers and the gateway use it: fast, cached, safe from any thread."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from agentrl.errors import encodable
from agentrl.tokens.control import MARK, MarkedEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Vocabulary"]

_CACHED_TEXTS = 4096
_CACHED_LENGTH = 16_384
"""Longer texts are rarely seen twice and would fill the cache."""
_CACHED_PIECES = 65_536
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """Text to ids and back, beside everything else that the tokenizer has.

    Role headers, system prompts and tool lists are encoded once and remembered. It has no ``__call__``
    on purpose: renderers then skip character offsets, which nothing here reads.
    """

    all_special_tokens = ()
    """None: the package's default renderer would take them out of texts in which the policy spelled them out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._encode, self._decode = _backend(tokenizer)
        self._encode_cached = lru_cache(_CACHED_TEXTS)(self._encode)
        self._bytes = lru_cache(_CACHED_PIECES)(self._bytes_after)
        self._spells = self._byte_spelling()
        self.unk_token_id = tokenizer.unk_token_id
        self.eos_token_id = tokenizer.eos_token_id
        self._convert_cached = lru_cache(None)(tokenizer.convert_tokens_to_ids)
        added = getattr(tokenizer, "added_tokens_decoder", {}).items()
        self.special_ids = frozenset(token_id for token_id, token in added if token.special)
        """Ids of the tokens that mark structure, such as the end of a turn."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_tokenizer":
            raise AttributeError(name)
        return getattr(self._tokenizer, name)

    def encode(self, text: str, **_: object) -> list[int]:
        """The ids of ``text``, its special tokens among them and none added, except those that it marks as plain.

        Half a character, which no vocabulary has, is spelled out as JSON spells it.
        """
        text = encodable(text)
        if MARK in text:
            return list(self._encode_marked(text))
        if len(text) > _CACHED_LENGTH:
            return list(self._encode(text))
        return list(self._encode_cached(text))

    def added_ids(self, template: str) -> dict[str, int]:
        """The tokens that mark structure, and their ids: special ones, and added ones that ``template`` writes."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {}).items()
        written = {token.content: token_id for token_id, token in added if token.special or token.content in template}
        return {token: token_id for token, token_id in written.items() if not token.isspace()}

    @cached_property
    def _encode_marked(self) -> Callable[[str], tuple[int, ...]]:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:  # Pieces of a token are encoded one by one, so that they never are that token.
            return lambda text: tuple(token for part in text.split(MARK) for token in self._encode(part))
        return MarkedEncoder(backend).encode

    def decode(self, ids: int | Sequence[int], **_: object) -> str:
        """The text of ``ids``, special tokens included."""
        return self._decode([ids] if isinstance(ids, int) else list(ids))

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        """The id of a token or those of several, as the tokenizer has it; renderers ask for the same few."""
        return (
            self._convert_cached(tokens) if isinstance(tokens, str) else self._tokenizer.convert_tokens_to_ids(tokens)
        )

    def special_id(self, token: str) -> int | None:
        """The id of ``token`` where the vocabulary holds it whole."""
        ids = self.encode(token)
        return ids[0] if len(ids) == 1 and self.decode(ids) == token else None

    def piece(self, token_id: int, before: int | None = None) -> bytes:
        """The bytes that one id of a completion adds to its text, given the id ``before`` it.

        Those of all its ids are together the bytes of its text, wherever that is whole: spaces that a decoder
        writes between ids, or leaves out at the start, are counted where they are written, and an id that is a
        part of a character has its own bytes.
        """
        alone = before is None or self._spells is _alphabet_bytes  # There an id is the same bytes everywhere.
        return self._bytes(token_id, None if alone else before)

    def _byte_spelling(self) -> Callable[[str], bytes | None] | None:
        """How the vocabulary writes bytes, if it has tokens that stand for single ones."""
        for token, char, spelling in (("<0x41>", "A", _fallback_byte), ("\u0120", " ", _alphabet_bytes)):
            token_id = self._tokenizer.convert_tokens_to_ids(token)
            if isinstance(token_id, int) and token_id != self.unk_token_id and self._decode([token_id]) == char:
                return spelling
        return None

    def _bytes_after(self, token_id: int, before: int | None) -> bytes:
        text = self._decode([token_id])
        if before is None and "\ufffd" not in text:
            return text.encode()
        raw = self._tokenizer.convert_ids_to_tokens(token_id)
        if self._spells is not None and isinstance(raw, str) and (spelled := self._spells(raw)) is not None:
            return spelled
        if before is not None:
            start, both = self._decode([before]), self._decode([before, token_id])
            text = both.removeprefix(start) if both.startswith(start) else text
        return text.encode()


def _backend(
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Callable[[str], tuple[int, ...]], Callable[[list[int]], str]]:
    """Encoder and decoder. A copy of the Rust tokenizer is called directly: around it, transformers costs
    several times as much and changes its settings at each call, which another thread may run into."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return (
            lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)),
            lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False)),
        )
    rust = copy.deepcopy(backend)
    rust.no_padding()
    rust.no_truncation()
    rust.encode_special_tokens = False
    return (
        lambda text: tuple(rust.encode(text, add_special_tokens=False).ids),
        lambda ids: str(rust.decode(ids, skip_special_tokens=False)),
    )


def _fallback_byte(token: str) -> bytes | None:
    """The byte of a token of a vocabulary with byte fallback, ``<0xC3>``; ``None`` for one that is text."""
    match = _FALLBACK.fullmatch(token)
    return bytes.fromhex(match[1]) if match else None


def _alphabet_bytes(token: str) -> bytes | None:
    """The bytes of a token of a byte-level vocabulary; ``None`` for one that was added as it is."""
    byte_of = _byte_alphabet()
    return bytes(byte_of[char] for char in token) if all(char in byte_of for char in token) else None


@lru_cache(1)
def _byte_alphabet() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for (the GPT-2 alphabet): printable
    Latin-1 stands for itself, every other byte for the next character from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
