"""The answer of a completion: its content and tool calls."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.tokens.incremental.call import Call
from agentrl.tokens.incremental.held import Held
from agentrl.tokens.incremental.json_calls import say_json
from agentrl.tokens.incremental.notation import HEADER
from agentrl.tokens.incremental.part import Part, unknown
from agentrl.tokens.incremental.source import Steps

__all__ = ["answer"]


def answer(part: Part, text: str, ids: Sequence[int]) -> Steps[None]:
    """Content and calls; the first ``text`` of it, of ``ids``, has been read."""
    notation, begun = part.notation, text.lstrip()
    whole = notation.whole_calls and begun[:1] == "{" and (part.tools or begun != text)
    json = notation.json if part.tools else None
    special = part.tools and bool(ids) and ids[0] in notation.special_ids
    if whole or begun.startswith(HEADER):
        yield from unknown(part, text)
    elif json is not None and json.opener:
        if special and not begun.startswith(json.opener):  # Calls may be read without this token.
            yield from unknown(part, text)
        else:
            yield from say_json(part, json, text)
    elif special or (json is not None and begun[:1] in ("{", "[")):
        yield from unknown(part, text)
    elif (yield from _say(part, text)):
        if notation.hermes and part.tools:
            yield from _call_by_tokens(part)
        else:
            yield from unknown(part, part.vocabulary.decode([*part.notation.call_ids]))


def _say(part: Part, text: str) -> Steps[bool]:
    """Text up to the token of a call; false at the end."""
    held = Held("", left=part.notation.strips, right=part.notation.strips) if part.notation.strips else None
    more: str | int | None = text
    while isinstance(more, str):
        part.told.say(held.add(more) if held else more)
        more = yield from part.source.read(part.notation.call_ids)
    text = part.source.decoder.end()
    part.told.say(held.add(text) + held.end() if held else text)
    return more is not None


def _call_by_tokens(part: Part) -> Steps[None]:
    """The calls, one after another; text between them is left out."""
    closes = part.notation.call_end_ids
    while True:
        part.source.begin()
        call, texts = Call(part.told), list[str]()
        more = yield from part.source.read(closes)
        while isinstance(more, str):
            texts.append(more)
            call.add(more)
            more = yield from part.source.read(closes)
        texts.append(part.source.decoder.end())
        call.end("".join(texts).strip())
        begun = more is not None and (yield from _skip(part))
        if not begun:
            return


def _skip(part: Part) -> Steps[bool]:
    """Leave out what comes before the next call; false at the end."""
    more: Sequence[int] | int | None = ()
    while more is not None and not isinstance(more, int):
        more = yield from part.source.read_ids(part.notation.call_ids)
    return more is not None
