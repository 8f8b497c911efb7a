"""Content with tool calls between marks of text."""

from __future__ import annotations

from agentrl.tokens.incremental.call import Call
from agentrl.tokens.incremental.held import overlap
from agentrl.tokens.incremental.part import Part
from agentrl.tokens.incremental.source import Steps
from agentrl.tokens.incremental.written import Balance
from agentrl.tokens.tool_calls import JsonCalls, calls_at

__all__ = ["say_json"]


def say_json(part: Part, json: JsonCalls, text: str) -> Steps[None]:
    """Text and the calls in it, up to the end."""
    after_call = False
    while True:
        before, mark, rest = text.partition(json.opener)
        if mark:
            part.told.say(before)
            text, after_call = (yield from _call_by_text(part, json, rest)), True
            continue
        sure = text[: len(text) - overlap(text, json.opener)]
        if not after_call or sure.strip():  # White space alone after a call is left out.
            part.told.say(sure)
            text, after_call = text[len(sure) :], False
        more = yield from part.source.more()
        if more is None:
            part.told.say("" if after_call and not text.strip() else text)
            return
        text += more


def _call_by_text(part: Part, json: JsonCalls, text: str) -> Steps[str]:
    """A call or a list of calls, of which ``text`` has been read; the text that has been read after it."""
    call, closer = Call(part.told), json.closer
    while not text.lstrip() and (more := (yield from part.source.more())) is not None:
        text += more
    start = len(text) - len(text.lstrip())
    valid, streams = text[start : start + 1] in ("{", "["), text[start : start + 1] == "{" and not json.has_ids
    balance, scanned, told, closed, more = Balance(), start, start, -1, ""
    while start < len(text) and valid and more is not None:
        end = balance.scan(text[scanned:])
        whole = None if end is None else scanned + end
        if closer and closed < 0:
            closed = text.find(closer, max(start, scanned - len(closer)), whole)
            valid = closed < 0 or _in_string(text[start:closed])
        scanned = len(text)
        sure = (len(text) - overlap(text, closer) if whole is None else whole) if closed < 0 else closed
        if streams and sure > told:
            call.add(text[told:sure])
            told = sure
        if whole is not None:
            if (found := calls_at(text, start)) is not None:
                for raw in found[0]:
                    attempt = json.attempt(raw)
                    call.end(raw, attempt.name, attempt.arguments, attempt.id)
                    call = Call(part.told)
                return (yield from _after_value(part, closer, text[found[1] :]))
            valid = False
        if valid and (more := (yield from part.source.more())) is not None:
            text += more
    # What is no call in valid JSON goes on to the next mark.
    searched = 0
    while not (closer and closer in text[searched:]) and (more := (yield from part.source.more())) is not None:
        searched = max(0, len(text) - len(closer))
        text += more
    block, _, rest = text.partition(closer) if closer else (text, "", "")
    call.end(block.strip())
    return rest


def _after_value(part: Part, closer: str, text: str) -> Steps[str]:
    """The text after the mark that closes a call, if it is there."""
    while True:
        text = text.lstrip()
        if text and (text.startswith(closer) or not closer.startswith(text)):
            return text.removeprefix(closer)
        more = yield from part.source.more()
        if more is None:
            return text
        text += more


def _in_string(text: str) -> bool:
    """Whether the beginning of a JSON value breaks off in a string."""
    balance = Balance()
    balance.scan(text)
    return balance.in_string
