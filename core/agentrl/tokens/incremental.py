"""A completion parsed while it is sampled: what each token adds to the assistant message.

What ``IncrementalParser`` gives, joined, is the message that ``Renderer.parse`` returns for the whole completion, and
nothing is ever taken back. So it gives only what no later token can change, and keeps the rest for then: white space
that is stripped at the end of a text, the beginning of what may become a mark or a stop string, half a character.
How a family writes thinking and calls is its ``Notation``. Where that is not known, nothing is certain before the end.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from agentrl.errors import encodable, shown
from agentrl.tokens.decoding import Decoder, Pieces, pieces_of
from agentrl.tokens.template import Message
from agentrl.tokens.tool_calls import JsonCalls, calls_at, read_call, unescaped
from agentrl.tokens.vocabulary import Vocabulary
from agentrl.tokens.written import Balance, WrittenCall

if TYPE_CHECKING:
    from agentrl.tokens.renderer import Reader

__all__ = ["Added", "AddedCall", "IncrementalParser", "Notation", "Opened", "notation_of"]

_log = logging.getLogger(__name__)

_Marks = tuple[str, str]
_T = TypeVar("_T")
_Steps = Generator[None, Sequence[int] | None, _T]
"""A part of the parser. It is sent ids as they come, and ``None`` at the end."""

_THINK: _Marks = ("<think>", "</think>")
_HEADER = "<|im_start|>assistant\n"
"""Parsers of the ``renderers`` package skip it at the beginning of a completion, whatever the family."""
_CALL_MARKS = {
    "qwen3": "<tool_call>",
    "qwen3.5": "<tool_call>",
    "glm": "<tool_call>",
    "deepseek-v3": "<｜tool▁calls▁begin｜>",
}
"""What begins the calls that the package's parsers read, if it is a token."""


@dataclass(frozen=True, slots=True)
class AddedCall:
    """What has been added to one tool call."""

    index: int
    """The call's number in the message, from 0."""
    id: str
    """The call's id, and its name below, when the call is new; empty later."""
    name: str
    arguments: str
    """The text that follows the arguments so far."""


class Added(NamedTuple):
    """What has been added to an assistant message; false where that is nothing."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[AddedCall, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


_NOTHING = Added()


@dataclass(frozen=True, slots=True)
class Notation:
    """How a family writes thinking and tool calls, as far as the beginning of a text tells what will be read."""

    pieces: Pieces
    stop_ids: frozenset[int]
    special_ids: frozenset[int]
    thinking_ids: tuple[int, int] | None = None
    """The tokens around thinking, where tokens decide about it; the texts of ``marks`` do otherwise."""
    marks: tuple[_Marks, ...] = ()
    """The texts that open thinking at the beginning of a completion, and those that close it."""
    spelled_ends: bool = False
    """Whether a ``</think>`` that is spelled in other tokens moves the beginning of the content."""
    strips: bool = False
    """Whether white space around the content is left out."""
    call_id: int | None = None
    """The token that begins calls and ends the content."""
    call_end_id: int | None = None
    """The token after a call."""
    hermes: bool = False
    """Whether each call is JSON between the two tokens."""
    json: JsonCalls | None = None
    """The reader of calls between marks of text."""

    def bare(self) -> Notation:
        """Return the notation of a text, in which nothing is a mark."""
        return Notation(self.pieces, self.stop_ids, self.special_ids)


def notation_of(
    reader: Reader, vocabulary: Vocabulary, stop_ids: frozenset[int], marks: tuple[_Marks, ...] | None
) -> Notation | None:
    """Return the notation of what ``reader`` reads, or ``None`` where nothing is known of it.

    ``marks`` are the texts around thinking that is cut off before ``reader`` is given a completion, if it is.
    """
    from renderers import DefaultRenderer, Qwen3Renderer, Qwen35Renderer

    pieces = pieces_of(vocabulary)
    if pieces is None:
        return None

    def token(mark: str) -> int | None:
        found = vocabulary.convert_tokens_to_ids(mark)
        return found if isinstance(found, int) and found != vocabulary.unk_token_id else None

    plain = Notation(pieces, stop_ids, vocabulary.special_ids, marks=marks or ())
    if marks is not None:
        if isinstance(reader, JsonCalls):
            return replace(plain, json=reader)
        if not isinstance(reader, DefaultRenderer):
            return None
        parser = reader.config.tool_parser
        if parser is None:
            return plain
        call = token(_CALL_MARKS[parser]) if parser in _CALL_MARKS else None
        return replace(plain, call_id=call, call_end_id=token("</tool_call>"), hermes=parser == "qwen3")
    opener, closer, call, call_end = map(token, (*_THINK, "<tool_call>", "</tool_call>"))
    if opener is None or closer is None or call is None or call_end is None:
        return None
    known = replace(plain, thinking_ids=(opener, closer), strips=True, call_id=call, call_end_id=call_end)
    if type(reader) is Qwen3Renderer:
        return replace(known, spelled_ends=True, hermes=True)
    return known if isinstance(reader, Qwen35Renderer) else None


@dataclass(frozen=True, slots=True)
class Opened:
    """What a prompt has opened for its completion."""

    marks: _Marks | None = None
    """The marks of thinking, where texts decide about it."""
    thinking: bool = False
    """Whether thinking, where tokens decide about it."""


class IncrementalParser:
    """Parses one completion, for one caller at a time."""

    def __init__(
        self,
        notation: Notation | None,
        vocabulary: Vocabulary,
        opened: Opened,
        *,
        tools: bool,
        call_ids: str,
        stop: Collection[str] = (),
    ) -> None:
        """``tools`` says whether tools are offered. ``stop`` are the strings that end a completion; the message has
        no text from the first of them on."""
        self._told = _Told(call_ids)
        self._gate = _Gate(notation.pieces, stop) if notation is not None and stop else None
        self._steps = None if notation is None else _Parts(notation, vocabulary, self._told, tools=tools).parse(opened)
        self._fed: list[int] = []
        """The ids, where the notation is not known."""
        if self._steps is not None:
            next(self._steps)

    def feed(self, ids: Sequence[int]) -> Added:
        """Return what the next ``ids`` of the completion add to the message."""
        self._send(ids if self._gate is None else self._gate.passed(ids))
        return self._told.new()

    def end(self, message: Mapping[str, Any]) -> Added:
        """Return what is missing to ``message``, which is what ``Renderer.parse`` returns for the whole completion."""
        return self._told.rest(message)

    @property
    def knows(self) -> bool:
        """Whether it knows how the completion is written. Where it does not, ``end`` gives everything."""
        return self._steps is not None

    def conclude(self) -> Message:
        """Return the message of all ids that were fed, with what cannot be told apart as content."""
        self._send(None)
        self._told.new()
        return self._told.message()

    def _send(self, ids: Sequence[int] | None) -> None:
        if self._steps is None:
            return
        try:
            self._steps.send(ids)
        except StopIteration:
            self._steps = _nothing_more()
            next(self._steps)


def _nothing_more() -> _Steps[None]:
    while True:
        yield


class _Parts:
    """The parts of one completion, each of which reads the ids that belong to it and tells what is certain."""

    def __init__(self, notation: Notation, vocabulary: Vocabulary, told: _Told, *, tools: bool) -> None:
        self._notation = notation
        self._vocabulary = vocabulary
        self._told = told
        self._tools = tools
        self._queue: Sequence[int] = ()
        """Ids that have come and not been read."""
        self._ended = False
        self._over = False
        """Whether the end of the last text has been read."""
        self._decoder = Decoder(notation.pieces)
        """Decodes the present part: each is a text of its own."""
        self._call = frozenset[int]() if notation.call_id is None else frozenset({notation.call_id})

    def parse(self, opened: Opened) -> _Steps[None]:
        """Read a whole completion."""
        if self._notation.thinking_ids is None:
            yield from self._parse_by_text(opened.marks)
        else:
            yield from self._parse_by_tokens(*self._notation.thinking_ids, thinking=opened.thinking)

    # Reading.

    def _read(self, marks: frozenset[int]) -> _Steps[str | int | None]:
        """The next text; or one of ``marks``; or ``None`` at the end."""
        ids = yield from self._read_ids(marks)
        return ids if ids is None or isinstance(ids, int) else self._decoder.add(ids)

    def _read_ids(self, marks: frozenset[int], most: int | None = None) -> _Steps[Sequence[int] | int | None]:
        """The next ids before one of ``marks``, at most ``most``; or that mark; or ``None`` at the end."""
        while not self._queue:
            if self._ended:
                return None
            ids = yield
            if ids is None:
                self._ended = True
            else:
                self._queue = ids
        ids, stops = self._queue, self._notation.stop_ids
        if most is not None:
            ids = ids[:most]
        if not (marks.isdisjoint(ids) and stops.isdisjoint(ids)):
            count = next(n for n, token in enumerate(ids) if token in marks or token in stops)
            ids = ids[:count]
            if count == 0:
                token, self._queue = self._queue[0], self._queue[1:]
                if token not in stops:
                    return token
                while (yield) is not None:  # What comes after the end of the turn is no part of it.
                    pass
                self._queue, self._ended = (), True
                return None
        self._queue = self._queue[len(ids) :]
        return ids

    def _unknown(self, text: str, ids: Sequence[int] = ()) -> _Steps[None]:
        """Tell nothing before the end: what comes may be read in one way or another."""
        text, rest = text, [*ids]
        while (more := (yield from self._read_ids(frozenset()))) is not None:
            rest += [more] if isinstance(more, int) else more
        self._told.say(text + self._vocabulary.decode(rest))

    # Thinking.

    def _parse_by_text(self, opened: _Marks | None) -> _Steps[None]:
        """Thinking is cut off by its marks in the text; what comes after is read as a completion of its own."""
        text, marks, ids = "", opened, list[int]()
        if marks is None:
            text, marks, ids = yield from self._beginning(self._notation.marks)
        if marks is not None:
            if not (yield from self._think_by_text(marks, text)):
                return
            self._told.strip_content()
            self._decoder = Decoder(self._notation.pieces)
            text, again, ids = yield from self._beginning((_THINK,))
            if again is not None:  # The library may read it as thinking once more.
                yield from self._unknown(text)
                return
        yield from self._answer(text, ids)

    def _beginning(self, openings: Sequence[_Marks]) -> _Steps[tuple[str, _Marks | None, list[int]]]:
        """As many ids as tell how a completion begins: their text, the marks of the thinking that they open, and
        the ids themselves."""
        text, ids = "", list[int]()
        while True:
            more = yield from self._read_ids(self._call, most=1)
            if more is None or isinstance(more, int):
                self._queue = self._queue if more is None else [more, *self._queue]
                return text, None, ids
            ids += more
            text += self._decoder.add(more)
            begun = text.lstrip()
            for marks in openings:
                if begun.startswith(marks[0]):
                    return text, marks, ids
            if begun and not _HEADER.startswith(begun) and not any(marks[0].startswith(begun) for marks in openings):
                return text, None, ids

    def _think_by_text(self, marks: _Marks, text: str) -> _Steps[bool]:
        """Thinking up to the mark that closes it, whose last token may hold text of the content; false at the end.

        The mark that opens it comes first, except where the prompt has written it.
        """
        opening, closing = marks
        held = _Held(closing, left=True, right=True)
        while True:
            if opening:
                begun = text.lstrip()
                if begun.startswith(opening):
                    text, opening = begun.removeprefix(opening), ""
                elif not opening.startswith(begun):
                    opening = ""
            if closing in held.text + text:  # Only where a single token holds both marks.
                yield from self._unknown(held.text + text)
                return False
            if not opening:
                self._told.reason(held.add(text))
                text = ""
            before = self._decoder.copy()
            ids = yield from self._read_ids(frozenset())
            if ids is None or isinstance(ids, int):
                text += self._decoder.end()
                begun = text.lstrip()
                self._told.reason(held.add(begun.removeprefix(opening) if opening else text) + held.end())
                return False
            new = self._decoder.add(ids)
            if closing in held.text + text + new:
                self._decoder = before
                break
            text += new
        for count in range(1, len(ids) + 1):
            text += self._decoder.add(ids[count - 1 : count])
            if closing in held.text + text:
                break
        if opening:
            text = text.lstrip().removeprefix(opening)
        thought, _, left = (held.text + text).partition(closing)
        held.text = ""
        self._told.reason(held.add(thought) + held.end())
        if self._decoder.pending:
            yield from self._unknown(left, ids[count:])
            return False
        self._queue = [*self._vocabulary.encode(left), *ids[count:], *self._queue]
        return True

    def _parse_by_tokens(self, opening: int, closing: int, *, thinking: bool) -> _Steps[None]:
        """Thinking is between two tokens, and a call is in it only if a token that closes it comes later."""
        text, ids = yield from self._blank_beginning(frozenset({opening, closing}))
        if not thinking:
            blank = not text.strip() and not self._decoder.pending
            thinking = blank and bool(self._queue) and self._queue[0] == opening
            text = "" if thinking else text
        if text.startswith(_HEADER):
            yield from self._unknown(text)
        elif not thinking:
            yield from self._answer(text, ids)
        elif (yield from self._think_by_tokens(opening, closing, text)):
            self._decoder = Decoder(self._notation.pieces)
            yield from self._answer("", [])
        else:
            yield from self._unknown("")

    def _blank_beginning(self, marks: frozenset[int]) -> _Steps[tuple[str, list[int]]]:
        """The first ids, as many as tell that they are neither white space nor a header, and their text; a mark that
        comes earlier is put back."""
        text, ids = "", list[int]()
        while not text.strip() or (_HEADER.startswith(text) and text != _HEADER):
            more = yield from self._read_ids(self._call | marks, most=1)
            if more is None:
                break
            if isinstance(more, int):
                self._queue = [more, *self._queue]
                break
            ids += more
            text += self._decoder.add(more)
        return text, ids

    def _think_by_tokens(self, opening: int, closing: int, begun: str) -> _Steps[bool]:
        """Thinking up to the token that closes it, ``begun`` before; false where the content will not be certain."""
        held, certain = _Held(_THINK[1], left=True, right=True), True
        marks = self._call | {opening, closing}
        while True:
            more = begun if begun else (yield from self._read(marks))
            begun, draft = "", list[int]()
            if isinstance(more, int) and more in self._call:
                draft, more = yield from self._draft(more, closing)
                if more is None:
                    self._told.reason(held.add(self._decoder.end()) + held.end())
                    self._queue = draft
                    return True
            text = more if isinstance(more, str) else ""
            if draft:
                text = self._decoder.add([token for token in draft if token != opening])
            ended = more is None or more == closing
            if ended:
                text += self._decoder.end()
            if self._notation.spelled_ends and _THINK[1] in held.text + text:
                certain = False
            self._told.reason(held.add(text) + (held.end() if ended else ""))
            if ended:
                return certain

    def _draft(self, call: int, closing: int) -> _Steps[tuple[list[int], int | None]]:
        """The ids of what is a call if thinking is not closed by a token, and that token."""
        ids, marks = [call], frozenset({closing})
        while True:
            more = yield from self._read_ids(marks)
            if more is None or isinstance(more, int):
                return ids, more
            ids += more

    # Content.

    def _answer(self, text: str, ids: Sequence[int]) -> _Steps[None]:
        """Content and calls; the first ``text`` of it, of ``ids``, has been read."""
        notation, begun = self._notation, text.lstrip()
        json = notation.json if self._tools else None
        special = self._tools and bool(ids) and ids[0] in notation.special_ids
        if json is not None and json.opener:
            if special and not begun.startswith(json.opener):  # Calls may be read without this token.
                yield from self._unknown(text)
            else:
                yield from self._say_json(json, text)
        elif special or begun.startswith(_HEADER) or (json is not None and begun[:1] in ("{", "[")):
            yield from self._unknown(text)
        elif (yield from self._say(text)):
            if notation.hermes and self._tools:
                yield from self._call_by_tokens()
            else:
                yield from self._unknown(self._vocabulary.decode([*self._call]))

    def _say(self, text: str) -> _Steps[bool]:
        """Text up to the token of a call; false at the end."""
        held = _Held("", left=self._notation.strips, right=self._notation.strips) if self._notation.strips else None
        more: str | int | None = text
        while isinstance(more, str):
            self._told.say(held.add(more) if held else more)
            more = yield from self._read(self._call)
        text = self._decoder.end()
        self._told.say(held.add(text) + held.end() if held else text)
        return more is not None

    def _call_by_tokens(self) -> _Steps[None]:
        """The calls, one after another; text between them is left out."""
        closes = frozenset[int]() if self._notation.call_end_id is None else frozenset({self._notation.call_end_id})
        while True:
            self._decoder = Decoder(self._notation.pieces)
            call, texts = _Call(self._told), list[str]()
            more = yield from self._read(closes)
            while isinstance(more, str):
                texts.append(more)
                call.add(more)
                more = yield from self._read(closes)
            texts.append(self._decoder.end())
            call.end("".join(texts).strip())
            begun = more is not None and (yield from self._skip())
            if not begun:
                return

    def _skip(self) -> _Steps[bool]:
        """Leave out what comes before the next call; false at the end."""
        more: Sequence[int] | int | None = ()
        while more is not None and not isinstance(more, int):
            more = yield from self._read_ids(self._call)
        return more is not None

    # Calls between marks of text.

    def _say_json(self, json: JsonCalls, text: str) -> _Steps[None]:
        """Text and the calls in it, up to the end."""
        after_call = False
        while True:
            before, mark, rest = text.partition(json.opener)
            if mark:
                self._told.say(before)
                text, after_call = (yield from self._call_by_text(json, rest)), True
                continue
            sure = text[: len(text) - _overlap(text, json.opener)]
            if not after_call or sure.strip():  # White space alone after a call is left out.
                self._told.say(sure)
                text, after_call = text[len(sure) :], False
            more = yield from self._more()
            if more is None:
                self._told.say("" if after_call and not text.strip() else text)
                return
            text += more

    def _call_by_text(self, json: JsonCalls, text: str) -> _Steps[str]:
        """A call or a list of calls, of which ``text`` has been read; the text that has been read after it."""
        call, closer = _Call(self._told), json.closer
        while not text.lstrip() and (more := (yield from self._more())) is not None:
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
            sure = (len(text) - _overlap(text, closer) if whole is None else whole) if closed < 0 else closed
            if streams and sure > told:
                call.add(text[told:sure])
                told = sure
            if whole is not None:
                if (found := calls_at(text, start)) is not None:
                    for raw in found[0]:
                        attempt = json.attempt(raw)
                        call.end(raw, attempt.name, attempt.arguments, attempt.id)
                        call = _Call(self._told)
                    return (yield from self._after_value(closer, text[found[1] :]))
                valid = False
            if valid and (more := (yield from self._more())) is not None:
                text += more
        # What is no call in valid JSON goes on to the next mark.
        searched = 0
        while not (closer and closer in text[searched:]) and (more := (yield from self._more())) is not None:
            searched = max(0, len(text) - len(closer))
            text += more
        block, _, rest = text.partition(closer) if closer else (text, "", "")
        call.end(block.strip())
        return rest

    def _more(self) -> _Steps[str | None]:
        """The next text where no token is a mark; ``None`` at the end."""
        if self._over:
            return None
        more = yield from self._read(_NO_MARKS)
        if isinstance(more, str):
            return more
        self._over = True
        return self._decoder.end()

    def _after_value(self, closer: str, text: str) -> _Steps[str]:
        """The text after the mark that closes a call, if it is there."""
        while True:
            text = text.lstrip()
            if text and (text.startswith(closer) or not closer.startswith(text)):
                return text.removeprefix(closer)
            more = yield from self._more()
            if more is None:
                return text
            text += more


_NO_MARKS = frozenset[int]()


def _in_string(text: str) -> bool:
    """Whether the beginning of a JSON value breaks off in a string."""
    balance = Balance()
    balance.scan(text)
    return balance.in_string


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``mark``."""
    most = min(len(mark) - 1, len(text))
    if most < 1 or mark[0] not in text[-most:]:
        return 0
    return next((length for length in range(most, 0, -1) if text.endswith(mark[:length])), 0)


class _Held:
    """A text without the white space around it and without what may be the beginning of a mark at its end."""

    __slots__ = ("_begun", "_left", "_mark", "_right", "text")

    def __init__(self, mark: str, *, left: bool, right: bool) -> None:
        self._mark, self._left, self._right = mark, left, right
        self._begun = False
        self.text = ""
        """What is held back."""

    def add(self, text: str) -> str:
        """Return what ``text`` makes certain."""
        text = self.text + text
        if self._left and not self._begun:
            text = text.lstrip()
        sure = text[: len(text) - _overlap(text, self._mark)] if self._mark else text
        if self._right:
            sure = sure.rstrip()
        self.text = text[len(sure) :]
        self._begun = self._begun or bool(sure)
        return sure

    def end(self) -> str:
        """Return what is left at the end of the text."""
        text, self.text = self.text, ""
        return text.rstrip() if self._right else text


class _Call:
    """One call while it is read."""

    def __init__(self, told: _Told) -> None:
        self._told = told
        self._written = WrittenCall()
        self._index: int | None = None

    def add(self, text: str) -> None:
        """Tell what more ``text`` of the call makes certain."""
        arguments = self._written.add(text)
        if self._index is None and self._written.name is not None:
            self._index = self._told.begin_call(unescaped(self._written.name))
        if arguments and self._index is not None:
            self._told.go_on(self._index, arguments)

    def end(self, raw: str, name: object = None, arguments: object = None, call_id: str | None = None) -> None:
        """Tell the rest of the call whose whole text is ``raw``; the others are what a parser found in it."""
        function = read_call(raw, name, arguments)
        if function is None:
            self._told.unread(raw)
            return
        if self._index is None:
            self._index = self._told.begin_call(function["name"], call_id)
        self._told.complete(self._index, function["arguments"])


class _Told:
    """What has been told of a message, and what is new in it."""

    def __init__(self, call_ids: str) -> None:
        self._call_ids = call_ids
        self._reasoning, self._content = "", ""
        self._new_calls: list[AddedCall] = []
        self._strips = False
        self._all: list[Added] = []
        self._calls: list[tuple[str, str, list[str]]] = []
        """The id, the name and the arguments of each call."""
        self._unread: list[str] = []

    def reason(self, text: str) -> None:
        self._reasoning += text

    def strip_content(self) -> None:
        """Leave out white space at the beginning of the content."""
        self._strips = True

    def say(self, text: str) -> None:
        if self._strips and text:
            text = text.lstrip()
            self._strips = not text
        self._content += text

    def begin_call(self, name: str, call_id: str | None = None) -> int:
        index = len(self._calls)
        call_id = encodable(call_id) if call_id else f"{self._call_ids}{index}"
        self._calls.append((call_id, name, []))
        self._new_calls.append(AddedCall(index, call_id, name, ""))
        return index

    def go_on(self, index: int, arguments: str) -> None:
        self._calls[index][2].append(arguments)
        self._new_calls.append(AddedCall(index, "", "", arguments))

    def complete(self, index: int, arguments: str) -> None:
        rest = _rest("".join(self._calls[index][2]), arguments)
        if rest:
            self.go_on(index, rest)

    def unread(self, raw: str) -> None:
        """A call without a readable name is content, after all other content."""
        self._unread.append(raw)

    def new(self) -> Added:
        """Return what has been told since the last time."""
        if not (self._reasoning or self._content or self._new_calls):
            return _NOTHING
        added = Added(self._reasoning, self._content, _joined(self._new_calls))
        self._reasoning = self._content = ""
        self._new_calls = []
        self._all.append(added)
        return added

    def message(self) -> Message:
        """Return all that has been told, as a message."""
        said = "".join(added.content for added in self._all)
        content = "\n".join([*filter(None, [said]), *self._unread])
        reasoning = "".join(added.reasoning for added in self._all)
        calls = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": "".join(arguments)}}
            for call_id, name, arguments in self._calls
        ]
        message: Message = {"role": "assistant", "content": content if content or not calls else None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return message

    def rest(self, message: Mapping[str, Any]) -> Added:
        """Return what ``message`` has beyond what has been told."""
        reasoning = _rest("".join(added.reasoning for added in self._all), message.get("reasoning_content") or "")
        content = _rest("".join(added.content for added in self._all), message.get("content") or "")
        for index, call in enumerate(message.get("tool_calls") or ()):
            if index == len(self._calls):
                self.begin_call(call["function"]["name"], call["id"])
            elif self._calls[index][:2] != (call["id"], call["function"]["name"]):
                _log.error("a tool call was streamed as %r and read as %r", self._calls[index][:2], call)
            self.complete(index, call["function"]["arguments"])
        return Added(reasoning, content, _joined(self._new_calls))


def _rest(told: str, whole: str) -> str:
    if not whole.startswith(told):  # A fault of this module; what is recorded is right, and what was told is not.
        _log.error("%s was streamed and %s was read", shown(told, 80), shown(whole, 80))
        return ""
    return whole[len(told) :]


def _joined(calls: Sequence[AddedCall]) -> tuple[AddedCall, ...]:
    """The additions to calls, each call's own as one."""
    if len(calls) < 2:
        return tuple(calls)
    joined: dict[int, AddedCall] = {}
    for call in calls:
        known = joined.get(call.index)
        joined[call.index] = call if known is None else replace(known, arguments=known.arguments + call.arguments)
    return tuple(joined.values())


class _Gate:
    """Holds back the ids of what may become a stop string, and all from a stop string on."""

    def __init__(self, pieces: Pieces, stop: Collection[str]) -> None:
        self._stop = tuple(text for text in stop if text)
        self._decoder = Decoder(pieces)
        self._waiting: list[tuple[int, int]] = []
        """Ids, each with where its text ends in ``_text``."""
        self._text = ""
        self._found = False

    def passed(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the ids that are certain to be no part of a stop string."""
        if self._found:
            return ()
        for token in ids:
            self._text += self._decoder.add((token,))
            self._waiting.append((token, len(self._text)))
        starts = [at for stop in self._stop if (at := self._text.find(stop)) >= 0]
        self._found = bool(starts)
        overlap = max((_overlap(self._text, stop) for stop in self._stop), default=0)
        sure = min(starts, default=len(self._text) - overlap)
        count = next((n for n, (_, end) in enumerate(self._waiting) if end > sure), len(self._waiting))
        passed, waiting = self._waiting[:count], self._waiting[count:]
        cut = passed[-1][1] if passed else 0
        self._text = self._text[cut:]
        self._waiting = [(token, end - cut) for token, end in waiting]
        return [token for token, _ in passed]
