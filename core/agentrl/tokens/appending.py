"""What a chat template appends to a conversation, for templates that no renderer of the ``renderers`` package knows.

A recorded conversation keeps its ids, and only what the template writes after its last turn is rendered. The turn gets
a stand-in with a known text, so that it does not matter how the template writes what the policy said. The text behind
the stand-in is encoded from the token on that ends the turn: alone, a text may be encoded otherwise than after a
special token, and some special tokens swallow the blanks after them.

Most templates append the same text whatever came before the turn. The conversation is then cut to its *tail*: the
system messages that open it, the last question, the turn and what is new, so that a late turn costs no more than an
early one. Where a template looks further back, the whole conversation is rendered with and without what is new. Probe
conversations tell which it is, for each kind of continuation when it first comes up, and why a kind cannot be extended.

A template that rewrites what came before seldom rewrites more than what follows the last question, such as the thinking
of its answer. Then the ids up to that question stay, and only what follows is rendered again.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from itertools import chain, groupby, takewhile
from typing import Any, Literal, NamedTuple

from agentrl.errors import GatewayError
from agentrl.tokens.probes import THOUGHT, TOOLS, heads, news, turn_of
from agentrl.tokens.template import ChatTemplate, Message, Messages, Tools, text_of, thinking_of

__all__ = ["OTHER_END", "QUESTION", "RESULTS", "Appending", "Shape", "shape_of"]

NO_END = "the template ends a turn with no token"
OTHER_END = "the template ends an answered turn with another token"
REFUSED = "the template refuses such a continuation"
REWRITTEN = "history rewritten by the template"
THINKING = "thinking dropped by the template"
TOOLS_MOVED = "tools moved by the template"
SYSTEM_MOVED = "system prompt moved by the template"
NEW_SYSTEM_MOVED = "new system message moved by the template"
UNKNOWN = "the messages before are not known"

_SHAPES = 512
_OPENED = re.compile(r"<think>\s*(</think>\s*)?$")
"""Thinking that a prompt opens, or closes as well, for the turn that it asks for."""
_THOUGHTS = re.compile(r"<think>.*?(</think>\s*|\Z)", re.DOTALL)
_SYSTEM = frozenset({"system", "developer"})


class Shape(NamedTuple):
    """The kind of a continuation: what a template may tell apart of a conversation, its last turn and what is new."""

    roles: tuple[str, ...]
    """The roles of the new messages in their order, without repetitions."""
    thinking: bool = False
    """Whether the conversation holds thinking of the policy."""
    tools: bool = False
    """Whether tools are offered."""
    system: bool = False
    """Whether a system message opens the conversation."""
    results: bool = False
    """Whether the last turn follows results of tools."""
    text: bool = True
    """Whether the last turn has a text."""
    calls: int = 0
    """How many tools the last turn calls: 0, 1, or 2 for several."""


QUESTION = Shape(("user",))
RESULTS = Shape(("tool",), tools=True, text=False, calls=1)


def shape_of(history: Messages, messages: Messages, tools: Tools | None, *, thinking: bool) -> Shape:
    """Return the kind of the continuation of ``history``, whose last message is a turn, by new ``messages``."""
    turn, calls = history[-1], len(history[-1].get("tool_calls") or ())
    return Shape(
        roles=_distinct("system" if message["role"] in _SYSTEM else message["role"] for message in messages),
        thinking=thinking,
        tools=bool(tools),
        system=history[0]["role"] in _SYSTEM,
        results=len(history) > 1 and history[-2]["role"] == "tool",
        text=not calls or bool(text_of(turn).strip()),
        calls=min(calls, 2),
    )


def _distinct(roles: Iterable[str]) -> tuple[str, ...]:
    return tuple(role for role, _ in groupby(roles))


_Outcome = Literal["tail", "whole", "fork"]
"""Whether rendering the tail gives what the template appends, or only rendering the whole does, or nothing."""


class _Tried(NamedTuple):
    outcome: _Outcome
    appended: str | None
    """What the template writes from the end of the turn on, if a token ends it."""
    reason: str | None = None
    """Why a conversation as the probe cannot be extended, where that can be seen."""


class Appending:
    """What one chat template appends after a turn of the assistant. Safe to use from any thread."""

    def __init__(self, template: ChatTemplate, stop_ids: frozenset[int]) -> None:
        """``stop_ids`` are the ids that end a turn of the policy."""
        self._template = template
        added = template.vocabulary.added_tokens_decoder
        self._end = _any_of(added[end].content for end in stop_ids if end in added)
        self._special = _any_of(token.content for token in added.values())
        self._stand_in = f"turn{secrets.token_hex(8)}"  # No message holds it, because nobody knows it.
        self._found = lru_cache(_SHAPES)(self._find)
        self._rewrites_little = lru_cache(_SHAPES)(self._rewrites_answers_only)

    def ids(self, history: Messages, messages: Messages, tools: Tools | None, *, thinking: bool) -> list[int] | str:
        """Return the ids that follow the last turn of ``history`` when ``messages`` do, or why all must be rendered.

        The first id is the one that ends the turn. ``thinking`` says whether the recorded conversation holds thinking.
        """
        if not history:
            return UNKNOWN
        outcome, reason = self._found(shape_of(history, messages, tools, thinking=thinking))
        if reason is not None:
            return reason
        for tail in (True, False) if outcome == "tail" else (False,):
            with suppress(GatewayError):  # A template may refuse what begins in the middle.
                appended = self._appended(history, messages, tools, tail=tail)
                return REWRITTEN if appended is None else self._template.vocabulary.encode(appended)
        return REFUSED

    def again(
        self, asked_ids: Sequence[int], history: Messages, messages: Messages, tools: Tools | None, *, thinking: bool
    ) -> list[int] | None:
        """Return the prompt after ``messages``, rendered from the last question of ``history`` on.

        ``asked_ids`` are the recorded prompt with that question, and stay up to the header of its answer. ``history``
        may lack what came before the question, except for the system messages that open it. The result is ``None``
        where that is not all that the template rewrites.
        """
        mark = self._header_mark
        kept = next((n for n in reversed(range(len(asked_ids))) if mark is not None and asked_ids[n] == mark[1]), None)
        if kept is None or not self._rewrites_little(shape_of(history, messages, tools, thinking=thinking)):
            return None
        try:
            rendered = self._from_header(history, messages, tools)
        except GatewayError:
            return None
        return None if rendered is None else [*asked_ids[:kept], *self._template.vocabulary.encode(rendered)]

    def fork(self, shape: Shape) -> str | None:
        """Return why continuations of ``shape`` are not extended; ``None`` where they are."""
        return self._found(shape)[1]

    def closing_ids(self) -> frozenset[int]:
        """Return the ids with which the template ends turns that a question or the results of tools have followed."""
        tried = (next(self._try(shape), None) for shape in (QUESTION, RESULTS))
        texts = (one.appended for one in tried if one is not None and one.appended is not None)
        return frozenset(self._template.vocabulary.encode(text)[0] for text in texts)

    def _appended(self, history: Messages, messages: Messages, tools: Tools | None, *, tail: bool) -> str | None:
        """The text from the token on that ends the last turn of ``history``; ``None`` where the text before changes."""
        turn = self._standing_in(history[-1])
        head = _tail(history[:-1]) if tail else None
        if head is not None:
            return self._behind(self._template.text([*head, turn, *messages], tools), turn)
        before = self._template.text(history[:-1], tools)
        after = self._template.text([*history[:-1], turn, *messages], tools)
        return self._behind(after, turn) if after.startswith(before) else None

    def _behind(self, text: str, turn: Message) -> str | None:
        """The text from the token on that ends ``turn``, which has the stand-in; ``None`` where no token does."""
        _, found, rest = text.rpartition(self._stand_in)
        end = self._end.search(rest) if found else None
        if end is None or ("tool_calls" not in turn and rest[: end.start()].strip()):
            return None
        return rest[end.start() :]

    def _standing_in(self, turn: Mapping[str, Any]) -> Message:
        """``turn`` with the stand-in for what the policy said and for the arguments of its calls."""
        calls = turn.get("tool_calls")
        if not calls:
            return {"role": "assistant", "content": self._stand_in}
        arguments = json.dumps({"argument": self._stand_in})
        put = [{**call, "function": {**call["function"], "arguments": arguments}} for call in calls]
        text = self._stand_in if text_of(turn).strip() else None
        return {"role": "assistant", "content": text, "tool_calls": put}

    @cached_property
    def _header_mark(self) -> tuple[str, int] | None:
        """The last token of its own in the header of a turn, or behind the question, and its id."""
        question = next(heads(system=False, calls=False, thinking=False))
        with suppress(GatewayError):
            header = self._template.text(question).rpartition(text_of(question[-1]))[2]
            for mark in reversed(self._special.findall(_OPENED.sub("", header))):
                return mark, self._template.vocabulary.encode(mark)[0]
        return None

    def _from_header(self, history: Messages, messages: Messages, tools: Tools | None) -> str | None:
        """The text from the header of the answer to the last question on; ``None`` where the text before it changes."""
        asked = _until_question(history)
        if self._header_mark is None or not asked:
            return None
        before, after = self._template.text(asked, tools), self._template.text([*history, *messages], tools)
        at = before.rfind(self._header_mark[0])
        return after[at:] if at >= 0 and after.startswith(before[:at]) else None

    def _rewrites_answers_only(self, shape: Shape) -> bool:
        """Whether the text up to the last question stays in the probes of ``shape``, and the rest needs no more."""
        same = []
        for head, turn, new, tools in self._conversations(shape):
            with suppress(GatewayError):
                whole = self._from_header([*head, turn], new, tools)
                tail = [*(_tail(head) or ()), *head[len(_until_question(head)) :], turn]
                same.append(whole is not None and whole == self._from_header(tail, new, tools))
        return bool(same) and all(same)

    def _find(self, shape: Shape) -> tuple[_Outcome, str | None]:
        """How continuations of ``shape`` are extended, and why they fork if they do."""
        tried = list(self._try(shape))
        outcomes = {one.outcome for one in tried}
        if not outcomes:
            return "fork", REFUSED
        if "fork" in outcomes:
            return "fork", self._reason(shape, tried)
        return ("whole" if "whole" in outcomes else "tail"), None

    def _try(self, shape: Shape) -> Iterator[_Tried]:
        """Each probe of ``shape`` that the template does not refuse."""
        for head, turn, new, tools in self._conversations(shape):
            with suppress(GatewayError):
                yield self._tried(head, turn, new, tools)

    def _conversations(self, shape: Shape) -> Iterator[tuple[list[Message], Message, list[Message], Tools | None]]:
        """The probes of ``shape``: what comes before the turn, the turn, what is new, and the tools."""
        tools, new = TOOLS if shape.tools else None, news(shape.roles, calls=shape.calls)
        turn = self._standing_in(turn_of(text=shape.text, calls=shape.calls))
        called = shape.tools or shape.results or shape.calls > 0
        for head in heads(system=shape.system, calls=called, thinking=shape.thinking):
            if (head[-1]["role"] == "tool") == shape.results:
                for spoken in _thinking(turn, head) if shape.thinking else (turn,):
                    yield head, spoken, new, tools

    def _tried(self, head: Messages, turn: Message, new: Messages, tools: Tools | None) -> _Tried:
        before, after = self._template.text(head, tools), self._template.text([*head, turn, *new], tools)
        appended, thought = self._behind(after, turn), thinking_of(turn)
        if not after.startswith(before):
            silent = _THOUGHTS.sub("", after).startswith(_THOUGHTS.sub("", before))
            return _Tried("fork", appended, THINKING if silent else None)
        if appended is None:
            _, written, rest = after.rpartition(self._stand_in)
            other = OTHER_END if self._special.match(rest.lstrip()) else NO_END
            return _Tried("fork", None, other if written else None)
        if thought not in after[len(before) :]:
            return _Tried("fork", appended, THINKING)
        if not all(text_of(message) in appended for message in new):
            return _Tried("fork", appended)
        return _Tried("tail" if self._by_tail([*head, turn], new, tools) == appended else "whole", appended)

    def _by_tail(self, history: Messages, messages: Messages, tools: Tools | None) -> str | None:
        try:
            return self._appended(history, messages, tools, tail=True)
        except GatewayError:
            return None

    def _reason(self, shape: Shape, tried: Sequence[_Tried]) -> str:
        seen = (one.reason for one in tried if one.reason is not None)
        easier = (reason for reason, easier in _easier(shape) if self.fork(easier) is None)
        return next(chain(seen, easier), REWRITTEN)


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches the longest of ``tokens`` at a position; it matches nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _until_question(messages: Messages) -> Messages:
    """The messages up to the last question; none where there is no question."""
    last = max((n for n, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return messages[: last + 1]


def _tail(before: Messages) -> list[Mapping[str, Any]] | None:
    """The opening system messages and the last question of the messages ``before`` a turn, if there is a question."""
    question = next((message for message in reversed(before) if message["role"] == "user"), None)
    if question is None:
        return None
    return [*takewhile(lambda message: message["role"] in _SYSTEM, before), question]


def _thinking(turn: Message, head: Messages) -> Iterator[Message]:
    """``turn`` with thinking, and without where a turn of ``head`` has some."""
    yield turn | {"reasoning_content": THOUGHT}
    if any(map(thinking_of, head)):
        yield turn


def _easier(shape: Shape) -> Iterator[tuple[str, Shape]]:
    """Shapes that lack one thing which templates may rewrite, with the reason where its lack is what matters."""
    if shape.thinking:
        yield THINKING, shape._replace(thinking=False)
    if shape.tools:
        yield TOOLS_MOVED, shape._replace(tools=False)
    if "system" in shape.roles:
        others = _distinct("user" if role == "system" else role for role in shape.roles)
        yield NEW_SYSTEM_MOVED, shape._replace(roles=others)
    if shape.system:
        yield SYSTEM_MOVED, shape._replace(system=False)
