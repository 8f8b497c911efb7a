"""A model's vocabulary: text to token ids and back, and the control tokens by which its prompts are structured.

A text of a message may spell out a control token, such as ``<|im_end|>``, and still mean plain text. ``ControlTokens``
finds such a spelling and puts ``MARK`` inside it, a noncharacter that texts do not hold; templates and renderers pass
it on, and ``Vocabulary.encode`` encodes what is marked as plain text, without the mark.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from agentrl.errors import encodable
from agentrl.tokens.template import text_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = ["MARK", "ControlTokens", "Vocabulary", "alphabet_bytes", "byte_of_token"]

MARK = "\ufdd0"
_CACHED_TEXTS = 4096
_CACHED_LENGTH = 16_384
"""Characters. Longer texts are rarely seen twice and would fill the cache."""
_CACHED_PIECES = 65_536
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """A tokenizer as renderers and the gateway use it: fast, cached, and safe to use from any thread.

    Other attributes are the tokenizer's own. Role headers, system prompts and tool lists are encoded once and
    remembered. There is no ``__call__`` on purpose: renderers then do not compute character offsets, which nothing
    here reads.
    """

    all_special_tokens = ()
    """Empty: with the tokenizer's own, the ``renderers`` package would cut their spellings out of completions."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._encode, self._decode = _encoder_and_decoder(tokenizer)
        self._encode_cached = lru_cache(_CACHED_TEXTS)(self._encode_text)
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
        """Return the ids of ``text``. Special tokens in it are recognised unless they are marked; none are added.

        A lone surrogate, which no vocabulary holds, is encoded as its JSON escape.
        """
        return list(self._encode_text(text) if len(text) > _CACHED_LENGTH else self._encode_cached(text))

    def _encode_text(self, text: str) -> Sequence[int]:
        text = encodable(text)
        return self._encode_marked(text) if MARK in text else self._encode(text)

    @cached_property
    def _encode_marked(self) -> Callable[[str], tuple[int, ...]]:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:  # The pieces of a marked token are encoded one by one, so they never become that token.
            return lambda text: tuple(token for part in text.split(MARK) for token in self._encode(part))
        return _MarkedEncoder(backend).encode

    def encode_after(self, before: int, text: str) -> list[int]:
        """Return the ids of ``text`` where it goes on after the token ``before``.

        Some vocabularies encode a text that begins otherwise than one that goes on, so that it is encoded together with
        what comes before, or with another text that it does not grow together with.
        """
        for anchor in (self.decode([before]), ".", "a"):
            alone, both = self.encode(anchor), self.encode(anchor + text)
            if anchor.strip() and both[: len(alone)] == alone and self.decode(both) == anchor + text:
                return both[len(alone) :]
        return self.encode(text)

    @cached_property
    def opening(self) -> list[int]:
        """The ids that the tokenizer itself puts before a text, such as the one that begins a document."""
        opening = list(self._tokenizer("")["input_ids"])
        return opening if opening == [self._tokenizer.bos_token_id] else []

    @cached_property
    def longest(self) -> int:
        """The most characters of a text that one token can stand for."""
        return max(map(len, self._tokenizer.get_vocab()))

    def decode(self, ids: int | Sequence[int], **_: object) -> str:
        """Return the text of ``ids``, special tokens included."""
        return self._decode([ids] if isinstance(ids, int) else list(ids))

    def before(self, ids: Sequence[int], stop: str) -> tuple[list[int], int | None] | None:
        """Return ids of the text before ``stop``, and how many of ``ids`` these are, if they are any.

        ``None`` is a text without ``stop``. Where ``stop`` begins inside a token, the ids before that token stay.
        """
        before, found, _ = self.decode(ids).partition(stop)
        if not found:
            return None
        count = len(ids)
        while count and len(self.decode(ids[:count])) > len(before):
            count -= 1
        kept = list(ids[:count])
        begun = self.decode(kept)
        if begun == before:
            return kept, count
        for rest in (self.encode(before[len(begun) :]), self._byte_ids(before[len(begun) :])):
            if self.decode([*kept, *rest]) == before:
                return [*kept, *rest], None
        return self.encode(before), None

    def _byte_ids(self, text: str) -> list[int]:
        """The ids of the bytes of ``text`` one by one, in a vocabulary that has byte tokens."""
        ids = self.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in text.encode()])
        return [token for token in ids if isinstance(token, int)]

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        """Return the tokenizer's id of a token, cached, or its ids of several."""
        if isinstance(tokens, str):
            return self._convert_cached(tokens)
        return self._tokenizer.convert_tokens_to_ids(tokens)

    def special_id(self, token: str) -> int | None:
        """Return the id of ``token`` if the vocabulary holds it as a single token."""
        ids = self.encode(token)
        return ids[0] if len(ids) == 1 and self.decode(ids) == token else None

    def added_ids(self, template: str) -> dict[str, int]:
        """Return the tokens that mark structure and their ids: special tokens, and added tokens in ``template``."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {}).items()
        written = {token.content: token_id for token_id, token in added if token.special or token.content in template}
        return {token: token_id for token, token_id in written.items() if not token.isspace()}

    def piece(self, token_id: int, before: int | None = None) -> bytes:
        """Return the bytes that one id of a completion adds to its text, given the id ``before`` it.

        The pieces of all ids of a completion, joined, are the UTF-8 bytes of its text, except where the text holds an
        incomplete character. An id that is part of a character has its own bytes, and a space that the decoder
        writes between two ids belongs to the second.
        """
        alone = before is None or self._spells is alphabet_bytes  # In a byte-level vocabulary context adds nothing.
        return self._bytes(token_id, None if alone else before)

    def _byte_spelling(self) -> Callable[[str], bytes | None] | None:
        """How the vocabulary writes bytes, if it has tokens that stand for single bytes."""
        for token, char, spelling in (("<0x41>", "A", byte_of_token), ("\u0120", " ", alphabet_bytes)):
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


def _encoder_and_decoder(
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Callable[[str], tuple[int, ...]], Callable[[list[int]], str]]:
    """A copy of the Rust tokenizer is called directly, where there is one: the wrapper of transformers costs several
    times as much, and it changes the tokenizer's settings at each call, which is not safe between threads."""
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


def byte_of_token(token: str) -> bytes | None:
    """Return the byte of a byte-fallback token such as ``<0xC3>``; ``None`` for a token of text."""
    match = _FALLBACK.fullmatch(token)
    return bytes.fromhex(match[1]) if match else None


def alphabet_bytes(token: str) -> bytes | None:
    """Return the bytes of a token of a byte-level vocabulary; ``None`` for an added token, which is stored as text."""
    byte_of = _byte_alphabet()
    return bytes(byte_of[char] for char in token) if all(char in byte_of for char in token) else None


@lru_cache(1)
def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    This is GPT-2's alphabet: printable Latin-1 stands for itself, every other byte for the next character from 256 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class ControlTokens:
    """The control tokens of a model, and their spellings in messages. Safe to use from any thread."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        """``ids`` maps each token to its id; single characters are not treated as control tokens."""
        self._ids = {token: token_id for token, token_id in ids.items() if len(token) > 1}
        self._pattern = _any_of(self._ids)

    @property
    def texts(self) -> Collection[str]:
        """The texts of the tokens."""
        return self._ids.keys()

    def given(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """Return the control tokens that messages of users, systems and tools spell out, each once."""
        texts = (text_of(message) for message in messages if message["role"] != "assistant")
        return tuple(dict.fromkeys(token for text in texts for token in self._pattern.findall(text)))

    def spelled(
        self, message: Mapping[str, Any], ids: Sequence[int], decode: Callable[[Sequence[int]], str]
    ) -> frozenset[str]:
        """Return the control tokens that the policy has spelled out in other tokens.

        ``message`` is the assistant message that was parsed from the completion ``ids``.
        """
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        texts = [text_of(message), message.get("reasoning_content") or ""]
        texts += [text for function in functions for text in (function["name"], function["arguments"])]
        spelled = {token for function in functions for token in self._escaped(function["arguments"])}
        if any(map(self._pattern.search, texts)):
            written, real = Counter(self._pattern.findall(decode(ids))), Counter(ids)
            spelled |= {token for token, count in written.items() if count > real[self._ids[token]]}
        return frozenset(spelled)

    def _escaped(self, arguments: str) -> Iterator[str]:
        """The control tokens that JSON escapes hide in ``arguments``; a template writes them unescaped."""
        for value in _strings(_parsed(arguments)) if "\\" in arguments else ():
            yield from (token for token in self._pattern.findall(value) if token not in arguments)

    def plain(
        self, messages: Sequence[Mapping[str, Any]], spelled: Sequence[Collection[str]], *, given: bool
    ) -> list[dict[str, Any]]:
        """Return the messages with marks in every spelling that is plain text.

        ``spelled`` holds, for each message, the control tokens that the policy spelled out in it. With ``given``,
        every spelling in the messages of users, systems and tools is plain text as well.
        """
        result = []
        for message, by_policy in zip(messages, spelled, strict=True):
            every = given and message["role"] != "assistant"
            result.append(self._plain(message, None if every else by_policy) if every or by_policy else dict(message))
        return result

    def plain_tools(self, tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
        """Return the tool definitions with marks in every spelling."""
        return None if tools is None else [self._walk(tool, None) for tool in tools]

    def _plain(self, message: Mapping[str, Any], only: Collection[str] | None) -> dict[str, Any]:
        changed = {**message, "content": self._mark(text_of(message), only)}
        if message.get("reasoning_content"):
            changed["reasoning_content"] = self._mark(message["reasoning_content"], only)
        if calls := message.get("tool_calls"):
            changed["tool_calls"] = [{**call, "function": self._function(call["function"], only)} for call in calls]
        return changed

    def _function(self, function: Mapping[str, Any], only: Collection[str] | None) -> dict[str, Any]:
        name, arguments = self._mark(function["name"], only), self._mark(function["arguments"], only)
        value = _parsed(arguments)
        if self._walk(value, only) != value:
            arguments = json.dumps(self._walk(value, only), ensure_ascii=False)
        return {**function, "name": name, "arguments": arguments}

    def _walk(self, value: Any, only: Collection[str] | None) -> Any:
        if isinstance(value, str):
            return self._mark(value, only)
        if isinstance(value, list):
            return [self._walk(each, only) for each in value]
        if isinstance(value, dict):
            return {self._mark(key, only): self._walk(each, only) for key, each in value.items()}
        return value

    def _mark(self, text: str, only: Collection[str] | None) -> str:
        return self._pattern.sub(lambda found: _mark_unless(found[0], only), text)


def _marked(token: str) -> str:
    return f"{token[0]}{MARK}{token[1:]}"


def _mark_unless(token: str, only: Collection[str] | None) -> str:
    return _marked(token) if only is None or token in only else token


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches the longest of ``texts`` at a position; it matches nothing where there are none."""
    return re.compile(_alternation(sorted(set(texts))) or r"(?!)")


def _alternation(texts: Sequence[str]) -> str:
    """The alternation of sorted ``texts``, with common prefixes factored out: some vocabularies add a thousand."""
    branches = []
    for _, group in groupby(texts, key=lambda text: text[:1]):
        alike = list(group)
        ends = zip(alike[0], alike[-1], strict=False)
        same = next((index for index, (one, other) in enumerate(ends) if one != other), len(alike[0]))
        longer = _alternation([text[same:] for text in alike if len(text) > same])
        ending = f"(?:{longer})" + "?" * (len(alike[0]) == same) if longer else ""
        branches.append(re.escape(alike[0][:same]) + ending)
    return "|".join(branches)


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return None


def _strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _strings(each)


class _MarkedEncoder:
    """Encodes texts with marks: a marked spelling is plain text, and every other added token is itself.

    It holds a copy of the tokenizer in which each added token has a private-use name. The names replace the tokens in
    the text before it is encoded, so that the copy cannot recognise a token by its spelling.
    """

    _NAME = ("\ue000", "\ue001")

    def __init__(self, backend: Tokenizer) -> None:
        from tokenizers import AddedToken, Tokenizer

        state = json.loads(backend.to_str())
        added, state["added_tokens"] = state["added_tokens"], []
        self._rust = Tokenizer.from_str(json.dumps(state))
        self._rust.no_padding()
        self._rust.no_truncation()
        names = {token["content"]: f"{self._NAME[0]}{number}{self._NAME[1]}" for number, token in enumerate(added)}
        flags = ("lstrip", "rstrip", "single_word")
        self._rust.add_tokens(
            [
                AddedToken(names[token["content"]], normalized=False, **{flag: token[flag] for flag in flags})
                for token in added
            ]
        )
        self._id_of = {self._rust.token_to_id(names[token["content"]]): token["id"] for token in added}
        self._replaced = names | {_marked(token): token for token in names if len(token) > 1}
        self._pattern = _any_of(self._replaced)

    def encode(self, text: str) -> tuple[int, ...]:
        renamed = self._pattern.sub(lambda found: self._replaced[found[0]], text)
        ids = self._rust.encode(renamed.replace(MARK, ""), add_special_tokens=False).ids
        return tuple(self._id_of.get(token_id, token_id) for token_id in ids)
