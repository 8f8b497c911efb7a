"""The channels of gpt-oss: thinking, content and calls, each a message with a header of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from agentrl.errors import encodable
from agentrl.tokens.incremental.call import Call
from agentrl.tokens.incremental.held import Held
from agentrl.tokens.incremental.notation import Channels
from agentrl.tokens.incremental.part import Part, unknown
from agentrl.tokens.incremental.source import Steps

__all__ = ["say_channels"]

_RECIPIENT = re.compile(r"to=([^\s<]+)")
_FUNCTION = "functions."


def say_channels(part: Part, marks: Channels, ids: Sequence[int], header: Sequence[int]) -> Steps[None]:
    """Read all messages; ``ids`` have been read, and ``header`` is what the prompt has of the first message."""
    special = bool(ids) and ids[0] in part.notation.special_ids
    if special and (ids[0] not in (marks.channel, marks.start) or marks.message in header):
        yield from unknown(part, "", ids)  # Calls may be read without this token.
        return
    first = bool(ids) and ids[0] == marks.start
    part.source.put_back(ids if first else [*header, *ids])
    thought, content = Held("", left=True, right=True), Held("", left=True, right=True)
    begun = yield from _until(part, marks.start)
    while begun is not None:
        head = yield from _until(part, marks.message)
        if head is None:
            return
        text = part.vocabulary.decode(head)
        if first and text.startswith("o="):  # Without the first token the header of the prompt would go on in it.
            yield from unknown(part, "")
            return
        first = False
        kind, name = _kind(part, marks, head, text)
        part.source.begin()
        if kind == "call" and part.tools:
            mark = yield from _call(part, marks, name)
        else:
            mark = yield from _text(part, marks, {"thinking": thought, "content": content}.get(kind), kind)
        if mark is None:
            part.told.reason(thought.end())
            part.told.say(content.end())
            return
        if mark != marks.start:
            begun = yield from _until(part, marks.start)


def _until(part: Part, mark: int) -> Steps[list[int] | None]:
    """The ids before ``mark``, or ``None`` at the end."""
    ids, marks = list[int](), frozenset({mark})
    while True:
        more = yield from part.source.read_ids(marks)
        if more is None or isinstance(more, int):
            return None if more is None else ids
        ids += more


def _kind(part: Part, marks: Channels, head: list[int], text: str) -> tuple[str, str]:
    """What a message with the header ``head`` is, and the name of the function that it calls."""
    recipient = _RECIPIENT.search(text)
    if recipient and recipient[1].startswith(_FUNCTION):
        return "call", recipient[1].removeprefix(_FUNCTION)
    after = part.vocabulary.decode(head[head.index(marks.channel) + 1 :]) if marks.channel in head else ""
    kinds = {"analysis": "thinking", "final": "content", "commentary": "content"}
    return kinds.get("".join(after.split()[:1]), "nothing"), ""


def _text(part: Part, marks: Channels, held: Held | None, kind: str) -> Steps[int | None]:
    """The text of a message; the mark that ends it, or ``None`` at the end."""
    tell = part.told.reason if kind == "thinking" else part.told.say
    while True:
        more = yield from part.source.read(marks.ends)
        text = more if isinstance(more, str) else part.source.decoder.end()
        if held is not None:
            tell(held.add(text))
        if not isinstance(more, str):
            return more


def _call(part: Part, marks: Channels, name: str) -> Steps[int | None]:
    """The arguments of a call; the mark that ends it, or ``None`` at the end."""
    texts, held, index = list[str](), Held("", left=False, right=True), None
    while True:
        more = yield from part.source.read(marks.ends)
        text = more if isinstance(more, str) else part.source.decoder.end()
        if name and not texts and text.startswith("{"):
            index = part.told.begin_call(encodable(name))
        texts += [text] if text else []
        if index is not None:
            part.told.go_on(index, held.add(text))
        if not isinstance(more, str):
            break
    raw = "".join(texts)
    try:
        arguments = json.loads(raw)
    except (ValueError, RecursionError):
        arguments = raw
    Call(part.told, index).end(raw, name or None, arguments)
    return more
