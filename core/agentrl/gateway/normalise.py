"""Replacing what changes from request to request in texts of the system: ``gateway.normalise``.

A prompt that begins with the time, or with a number that is never the same, shares no prefix with any other: its
conversation is rendered anew with every call, and its tokens are computed anew. A rule replaces such parts before
messages are rendered, and before they are compared with what a session has recorded. What it replaces is kept with the
call, so that nothing goes unnoticed.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentrl.errors import GatewayError, PluginError, one_line, shown
from agentrl.gateway.contract import ModelRequest, Normaliser, Replacement
from agentrl.plugins import Plugins
from agentrl.plugins.building import PartLike
from agentrl.tokens.template import Message

__all__ = ["Normalisers", "claude_code_billing_header", "clock_times", "tokens_left", "uuids"]

_OF_THE_SYSTEM = ("system", "developer")


class Normalisers:
    """The rules of a run, in their order. Safe to use from any thread."""

    def __init__(self, rules: Sequence[tuple[str, Normaliser]] = ()) -> None:
        """``rules`` are names, by which replacements are counted, and rules."""
        self._rules = tuple(rules)

    @classmethod
    def build(cls, plugins: Plugins, parts: Sequence[PartLike]) -> Normalisers:
        """The rules that ``gateway.normalise`` names.

        Raises ``ConfigError`` for a name that stands for nothing, and ``PluginError`` for what cannot be called.
        """
        return cls([(part.name, _built(plugins, part)) for part in parts])

    def applied(self, request: ModelRequest) -> ModelRequest:
        """``request`` with the rules applied to its texts of the system, and with what they replaced.

        A message that the rules leave empty is left out, unless there is no other. Raises ``GatewayError`` (400) where
        a rule fails.
        """
        if not self._rules:
            return request
        messages, replaced = list(request.messages), list[Replacement]()
        for index, message in enumerate(messages):
            if message.get("role") in _OF_THE_SYSTEM and (text := _text(message)):
                rendered, found = self._rendered(index, text)
                if found:
                    messages[index] = {**message, "content": rendered}
                    replaced += found
        if not replaced:
            return request
        emptied = {each.message for each in replaced if not messages[each.message]["content"]}
        messages = [message for index, message in enumerate(messages) if index not in emptied] or messages
        return replace(request, messages=messages, normalised=tuple(replaced), relay=_relay(request, messages))

    def _rendered(self, message: int, text: str) -> tuple[str, list[Replacement]]:
        replaced = []
        for name, rule in self._rules:
            rendered = _called(name, rule, text)
            if rendered != text:
                replaced.append(_difference(name, message, text, rendered))
                text = rendered
        return text, replaced


def _built(plugins: Plugins, part: PartLike) -> Normaliser:
    rule = plugins.build("normalisers", part)
    if not callable(rule):
        raise PluginError(
            f"gateway.normalise={part.name!r} is of type {type(rule).__name__}, which cannot be called",
            fix="name a function that takes a text and returns one: see Normaliser in agentrl.gateway.contract",
        )
    built: Normaliser = rule
    return built


def _relay(request: ModelRequest, messages: list[Message]) -> Mapping[str, Any] | None:
    """What an endpoint is sent where the request is passed on to one: the same messages."""
    if request.relay is None or request.relay.get("messages") is not request.messages:
        return request.relay
    return {**request.relay, "messages": messages}


def _text(message: Mapping[str, Any]) -> str:
    """The text of a message; empty where its content is anything else, which an endpoint may be sent."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "".join(texts) if len(texts) == len(parts) else ""


def _called(name: str, rule: Normaliser, text: str) -> str:
    try:
        rendered = rule(text)
        if not isinstance(rendered, str):
            raise TypeError(f"it returned {shown(rendered, 80)}, which is no text")
    except Exception as error:  # The boundary to a plugin, which fails for this text whenever it is sent.
        raise GatewayError(
            f"the rule {name!r} of gateway.normalise failed: {type(error).__name__}: {one_line(error)}",
            code="normaliser_failed",
            fix="mend it, or leave it out of gateway.normalise",
        ) from error
    return rendered


def _difference(rule: str, message: int, text: str, rendered: str) -> Replacement:
    """What has to be replaced in ``text``, from the first character that differs to the last, to make ``rendered``."""
    most = min(len(text), len(rendered))
    start = bisect_left(range(1, most + 1), True, key=lambda n: text[:n] != rendered[:n])
    most -= start
    end = bisect_left(range(1, most + 1), True, key=lambda n: text[-n:] != rendered[-n:])
    return Replacement(rule, message, start, text[start : len(text) - end], rendered[start : len(rendered) - end])


_BILLING_HEADER = re.compile(r"^x-anthropic-billing-header:(?:[ \t]*[\w-]+=[^\s;]*;?)*\s*", re.MULTILINE)


def claude_code_billing_header(text: str) -> str:
    """Leave out the line of accounting that Claude Code begins its system prompt with.

    The line, ``x-anthropic-billing-header: cc_version=…; cc_entrypoint=…; cch=…;``, is made for a server that does not
    pass it on to the model, and differs in every request.
    """
    return _BILLING_HEADER.sub("", text) if "x-anthropic-billing-header:" in text else text


_CLOCK_TIME = re.compile(
    r"(?<![\d:])(?:[01]?\d|2[0-3]):[0-5]\d:[0-5]\d(?:[.,]\d+)?(?![\d:])(?:[ \u202f]?[ap]\.?m\b\.?)?", re.IGNORECASE
)


def clock_times(text: str) -> str:
    """Write ``??:??:??`` for every time of day that is told to the second; its date and its zone stay.

    ``2026-01-31T09:41:07.123Z`` becomes ``2026-01-31T??:??:??Z``.
    """
    return _CLOCK_TIME.sub("??:??:??", text)


_NUMBER = r"\d(?:[\d,._]*\d)?(?:[km]\b)?"
_COUNT = rf"{_NUMBER}\s?%?(?:\s?(?:/|of)\s?{_NUMBER})?(?:[;,]\s?{_NUMBER}\s?%?\s(?:left|remaining))?"
_COUNTED = r"\b(?:tokens?|context(?:[ -](?:window|budget|length))?)\b"
_STATE = r"\b(?:left|remaining|remains?|used|usage)\b"
_COUNTER = re.compile(
    rf"(?:{_COUNTED}[^\d\n.,;]{{0,24}}{_STATE}|{_STATE}[^\d\n.,;]{{0,24}}{_COUNTED})[^\d\n.,;]{{0,32}}{_COUNT}"
    rf"|(?<![\w.,]){_COUNT}\s(?:of\sthe\s)?{_COUNTED}(?:\s\w+)?\s{_STATE}",
    re.IGNORECASE,
)
_ANY_NUMBER = re.compile(_NUMBER, re.IGNORECASE)


def tokens_left(text: str) -> str:
    """Write ``?`` for the numbers that say how many tokens, or how much of the context, are used or left.

    ``Token usage: 38472/200000; 161528 remaining`` becomes ``Token usage: ?/?; ? remaining``.
    """
    return _COUNTER.sub(lambda found: _ANY_NUMBER.sub("?", found[0]), text)


_UUID = re.compile(r"(?<![\w-])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![\w-])", re.IGNORECASE)


def uuids(text: str) -> str:
    """Number the UUIDs in a text, in the order in which they first come: the first is ``…-000000000001``.

    Equal ones stay equal. It is for texts of which the policy never has to repeat one.
    """
    numbers: dict[str, int] = {}
    return _UUID.sub(
        lambda found: f"00000000-0000-0000-0000-{numbers.setdefault(found[0].lower(), len(numbers) + 1):012}", text
    )
