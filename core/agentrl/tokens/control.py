"""Control tokens that a text spells out: found, and marked so that they are encoded as the plain text that they are.

A mark is a noncharacter inside the spelling, which texts do not hold; templates and renderers carry it along, and
``Vocabulary.encode`` takes it out again.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from agentrl.tokens.form import text_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["MARK", "ControlTokens", "MarkedEncoder"]

MARK = "\ufdd0"
_PLACE = ("\ue000", "\ue001")


def _marked(token: str) -> str:
    return f"{token[0]}{MARK}{token[1:]}"


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of ``texts`` at a place; nothing where there are none."""
    return re.compile(_branches(sorted(set(texts))) or r"(?!)")


def _branches(texts: Sequence[str]) -> str:
    """The alternation of ``texts``, which are in order. What several begin with is tried once: some have a thousand."""
    branches = []
    for _, group in groupby(texts, key=lambda text: text[:1]):
        alike = list(group)
        ends = zip(alike[0], alike[-1], strict=False)
        same = next((place for place, (one, other) in enumerate(ends) if one != other), len(alike[0]))
        longer = _branches([text[same:] for text in alike if len(text) > same])
        ending = f"(?:{longer})" + "?" * (len(alike[0]) == same) if longer else ""
        branches.append(re.escape(alike[0][:same]) + ending)
    return "|".join(branches)


class ControlTokens:
    """The tokens by which a model's prompts are structured. Safe from any thread."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        """``ids`` are the tokens and their ids; single characters are no control tokens."""
        self._ids = {token: token_id for token, token_id in ids.items() if len(token) > 1}
        self._pattern = _any_of(self._ids)

    def given(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """Which of them are spelled out in texts that are not the assistant's, each once."""
        texts = (text_of(message) for message in messages if message["role"] != "assistant")
        return tuple(dict.fromkeys(token for text in texts for token in self._pattern.findall(text)))

    def spelled(
        self, message: Mapping[str, Any], ids: Sequence[int], decode: Callable[[Sequence[int]], str]
    ) -> frozenset[str]:
        """Which of them the policy has spelled out in other tokens, where ``message`` is its completion of ``ids``."""
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        texts = [text_of(message), message.get("reasoning_content") or ""]
        texts += [text for function in functions for text in (function["name"], function["arguments"])]
        spelled = {token for function in functions for token in self._escaped(function["arguments"])}
        if any(map(self._pattern.search, texts)):
            written, real = Counter(self._pattern.findall(decode(ids))), Counter(ids)
            spelled |= {token for token, count in written.items() if count > real[self._ids[token]]}
        return frozenset(spelled)

    def _escaped(self, arguments: str) -> Iterator[str]:
        """Those that escapes hide in JSON text, which templates write as what they mean."""
        for value in _texts(_parsed(arguments)) if "\\" in arguments else ():
            yield from (token for token in self._pattern.findall(value) if token not in arguments)

    def plain(
        self, messages: Sequence[Mapping[str, Any]], spelled: Sequence[Collection[str]], *, given: bool
    ) -> list[dict[str, Any]]:
        """The messages with marks in whatever is to be plain text.

        That is what the policy ``spelled`` out, message by message, and with ``given`` all that others wrote.
        """
        result = []
        for message, by_policy in zip(messages, spelled, strict=True):
            every = given and message["role"] != "assistant"
            result.append(self._plain(message, None if every else by_policy) if every or by_policy else dict(message))
        return result

    def plain_tools(self, tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
        """Definitions of tools with marks in all their texts."""
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


def _mark_unless(token: str, only: Collection[str] | None) -> str:
    return _marked(token) if only is None or token in only else token


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _texts(each)


class MarkedEncoder:
    """Encodes texts with marks: what is marked is plain text, and all other tokens are themselves.

    A copy of the tokenizer knows its added tokens by other names only, which take their places before it encodes.
    """

    def __init__(self, backend: Tokenizer) -> None:
        from tokenizers import AddedToken, Tokenizer

        state = json.loads(backend.to_str())
        added, state["added_tokens"] = state["added_tokens"], []
        self._rust = Tokenizer.from_str(json.dumps(state))
        self._rust.no_padding()
        self._rust.no_truncation()
        places = {token["content"]: f"{_PLACE[0]}{number}{_PLACE[1]}" for number, token in enumerate(added)}
        flags = ("lstrip", "rstrip", "single_word")
        self._rust.add_tokens(
            [
                AddedToken(places[token["content"]], normalized=False, **{flag: token[flag] for flag in flags})
                for token in added
            ]
        )
        self._id_of = {self._rust.token_to_id(places[token["content"]]): token["id"] for token in added}
        self._replaced = places | {_marked(token): token for token in places if len(token) > 1}
        self._pattern = _any_of(self._replaced)

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of ``text``."""
        renamed = self._pattern.sub(lambda found: self._replaced[found[0]], text)
        ids = self._rust.encode(renamed.replace(MARK, ""), add_special_tokens=False).ids
        return tuple(self._id_of.get(token_id, token_id) for token_id in ids)
