"""The thinking of a completion, by which it begins, and where its answer begins."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.tokens.incremental.answer import answer
from agentrl.tokens.incremental.channels import say_channels
from agentrl.tokens.incremental.held import Held
from agentrl.tokens.incremental.notation import HEADER, THINK, Marks, Opened
from agentrl.tokens.incremental.part import Part, unknown
from agentrl.tokens.incremental.source import NO_MARKS, Steps

__all__ = ["completion"]


def completion(part: Part, opened: Opened) -> Steps[None]:
    """Read a whole completion."""
    if part.notation.thinking_ids is None:
        yield from _parse_by_text(part, opened)
    else:
        yield from _parse_by_tokens(part, *part.notation.thinking_ids, thinking=opened.thinking)


def _parse_by_text(part: Part, opened: Opened) -> Steps[None]:
    """Thinking is cut off by its marks in the text; what comes after is read as a completion of its own."""
    text, marks, ids = "", opened.marks, list[int]()
    if marks is None:
        text, marks, ids = yield from _beginning(part, part.notation.marks)
    if marks is not None:
        if not (yield from _think_by_text(part, marks, text)):
            return
        part.told.strip_content()
        part.source.begin()
        text, again, ids = yield from _beginning(part, (THINK,))
        if again is not None or part.notation.channels is not None:  # The library may read it as thinking once more.
            yield from unknown(part, text)
            return
    certain = part.notation.certain
    if certain == "never" or (certain == "without tools" and part.tools):
        yield from unknown(part, text)
    elif part.notation.channels is not None:
        yield from say_channels(part, part.notation.channels, ids, opened.header)
    else:
        yield from answer(part, text, ids)


def _beginning(part: Part, openings: Sequence[Marks]) -> Steps[tuple[str, Marks | None, list[int]]]:
    """As many ids as tell how a completion begins: their text, the marks of the thinking that they open, and
    the ids themselves."""
    text, ids = "", list[int]()
    while True:
        more = yield from part.source.read_ids(part.notation.call_ids, most=1)
        if more is None or isinstance(more, int):
            part.source.put_back([] if more is None else [more])
            return text, None, ids
        ids += more
        text += part.source.decoder.add(more)
        begun = text.lstrip()
        for marks in openings:
            if begun.startswith(marks[0]):
                return text, marks, ids
        if begun and not HEADER.startswith(begun) and not any(marks[0].startswith(begun) for marks in openings):
            return text, None, ids


def _think_by_text(part: Part, marks: Marks, text: str) -> Steps[bool]:
    """Thinking up to the mark that closes it, whose last token may hold text of the content; false at the end.

    The mark that opens it comes first, except where the prompt has written it.
    """
    opening, closing = marks
    held = Held(closing, left=True, right=True)
    while True:
        if opening:
            begun = text.lstrip()
            if begun.startswith(opening):
                text, opening = begun.removeprefix(opening), ""
            elif not opening.startswith(begun):
                opening = ""
        if closing in held.text + text:  # Only where a single token holds both marks.
            yield from unknown(part, held.text + text)
            return False
        if not opening:
            part.told.reason(held.add(text))
            text = ""
        before = part.source.decoder.copy()
        ids = yield from part.source.read_ids(NO_MARKS)
        if ids is None or isinstance(ids, int):
            text += part.source.decoder.end()
            begun = text.lstrip()
            part.told.reason(held.add(begun.removeprefix(opening) if opening else text) + held.end())
            return False
        new = part.source.decoder.add(ids)
        if closing in held.text + text + new:
            part.source.decoder = before
            break
        text += new
    for count in range(1, len(ids) + 1):
        text += part.source.decoder.add(ids[count - 1 : count])
        if closing in held.text + text:
            break
    if opening:
        text = text.lstrip().removeprefix(opening)
    thought, _, left = (held.text + text).partition(closing)
    held.text = ""
    part.told.reason(held.add(thought) + held.end())
    if part.source.decoder.pending:
        yield from unknown(part, left, ids[count:])
        return False
    part.source.put_back([*part.vocabulary.encode(left), *ids[count:]])
    return True


def _parse_by_tokens(part: Part, opening: int, closing: int, *, thinking: bool) -> Steps[None]:
    """Thinking is between two tokens, and a call is in it only if a token that closes it comes later."""
    text, ids = yield from _blank_beginning(part, frozenset({opening, closing}))
    if not thinking:
        blank = not text.strip() and not part.source.decoder.pending
        thinking = blank and part.source.next == opening
        text = "" if thinking else text
    if text.startswith(HEADER):
        yield from unknown(part, text)
    elif not thinking:
        yield from answer(part, text, ids)
    elif (yield from _think_by_tokens(part, opening, closing, text)):
        part.source.begin()
        yield from answer(part, "", [])
    else:
        yield from unknown(part, "")


def _blank_beginning(part: Part, marks: frozenset[int]) -> Steps[tuple[str, list[int]]]:
    """The first ids, as many as tell that they are neither white space nor a header, and their text; a mark that
    comes earlier is put back."""
    text, ids = "", list[int]()
    while not text.strip() or (HEADER.startswith(text) and text != HEADER):
        more = yield from part.source.read_ids(part.notation.call_ids | marks, most=1)
        if more is None:
            break
        if isinstance(more, int):
            part.source.put_back([more])
            break
        ids += more
        text += part.source.decoder.add(more)
    return text, ids


def _think_by_tokens(part: Part, opening: int, closing: int, begun: str) -> Steps[bool]:
    """Thinking up to the token that closes it, ``begun`` before; false where the content will not be certain."""
    held, certain = Held(THINK[1], left=True, right=True), True
    marks = part.notation.call_ids | {opening, closing}
    while True:
        more = begun if begun else (yield from part.source.read(marks))
        begun, draft = "", list[int]()
        if isinstance(more, int) and more in part.notation.call_ids:
            draft, more = yield from _draft(part, more, closing)
            if more is None:
                part.told.reason(held.add(part.source.decoder.end()) + held.end())
                part.source.put_back(draft)
                return True
        text = more if isinstance(more, str) else ""
        if draft:
            text = part.source.decoder.add([token for token in draft if token != opening])
        ended = more is None or more == closing
        if ended:
            text += part.source.decoder.end()
        if part.notation.spelled_ends and THINK[1] in held.text + text:
            certain = False
        part.told.reason(held.add(text) + (held.end() if ended else ""))
        if ended:
            return certain


def _draft(part: Part, call: int, closing: int) -> Steps[tuple[list[int], int | None]]:
    """The ids of what is a call if thinking is not closed by a token, and that token."""
    ids, marks = [call], frozenset({closing})
    while True:
        more = yield from part.source.read_ids(marks)
        if more is None or isinstance(more, int):
            return ids, more
        ids += more
