"""How families write thinking and tool calls, as far as a completion can be read before its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from agentrl.tokens.incremental.decoding import Pieces, pieces_of
from agentrl.tokens.tool_calls import JsonCalls
from agentrl.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from agentrl.tokens.renderer import Reader

__all__ = ["HEADER", "THINK", "Channels", "Marks", "Notation", "Opened", "notation_of"]

Marks = tuple[str, str]
"""The text that opens something, and the text that closes it."""

THINK: Marks = ("<think>", "</think>")
HEADER = "<|im_start|>assistant\n"
"""Parsers of the ``renderers`` package skip it at the beginning of a completion, whatever the family."""
_CALL_MARKS = {
    "qwen3": "<tool_call>",
    "qwen3.5": "<tool_call>",
    "glm": "<tool_call>",
    "deepseek-v3": "<｜tool▁calls▁begin｜>",
}
"""What begins the calls that the package's parsers read, if it is a token."""


@dataclass(frozen=True, slots=True)
class Channels:
    """The tokens around the messages of gpt-oss, of which a turn consists."""

    start: int
    channel: int
    message: int
    ends: frozenset[int]
    """Those that end a message: the end itself, a call, and the start of another message."""

    def header(self, prompt_ids: Sequence[int]) -> tuple[int, ...]:
        """Return the ids of a prompt from the header of its last message on."""
        begun = next((n for n in reversed(range(len(prompt_ids))) if prompt_ids[n] == self.start), len(prompt_ids))
        return tuple(prompt_ids[begun:])


@dataclass(frozen=True, slots=True)
class Notation:
    """How a family writes thinking and tool calls, as far as the beginning of a text tells what will be read."""

    pieces: Pieces
    stop_ids: frozenset[int]
    special_ids: frozenset[int]
    thinking_ids: tuple[int, int] | None = None
    """The tokens around thinking, where tokens decide about it; the texts of ``marks`` do otherwise."""
    marks: tuple[Marks, ...] = ()
    """The texts that open thinking at the beginning of a completion, and those that close it."""
    spelled_ends: bool = False
    """Whether a ``</think>`` that is spelled in other tokens moves the beginning of the content."""
    strips: bool = False
    """Whether white space around the content is left out."""
    call_ids: frozenset[int] = frozenset()
    """The token that begins calls and ends the content, if there is one."""
    call_end_ids: frozenset[int] = frozenset()
    """The token after a call, if there is one."""
    hermes: bool = False
    """Whether each call is JSON between the two tokens."""
    json: JsonCalls | None = None
    """The reader of calls between marks of text."""
    channels: Channels | None = None
    whole_calls: bool = False
    """Whether a call is a whole turn of JSON."""
    certain: Literal["always", "without tools", "never"] = "always"
    """When anything that comes after the thinking is certain before the end."""

    def bare(self) -> Notation:
        """Return the notation of a text, in which nothing is a mark."""
        return Notation(self.pieces, self.stop_ids, self.special_ids)


def notation_of(
    reader: Reader, vocabulary: Vocabulary, stop_ids: frozenset[int], marks: tuple[Marks, ...] | None
) -> Notation | None:
    """Return the notation of what ``reader`` reads, or ``None`` where nothing is known of it.

    ``marks`` are the texts around thinking that is cut off before ``reader`` is given a completion, if it is.
    """
    from renderers import DefaultRenderer, Qwen3Renderer, Qwen35Renderer

    from agentrl.tokens.library import Harmony, LlamaTurns
    from agentrl.tokens.response_template import ResponseTemplate

    pieces = pieces_of(vocabulary)
    if pieces is None:
        return None

    def token(mark: str) -> int | None:
        found = vocabulary.convert_tokens_to_ids(mark)
        return found if isinstance(found, int) and found != vocabulary.unk_token_id else None

    def set_of(mark: str) -> frozenset[int]:
        found = token(mark) if mark else None
        return frozenset() if found is None else frozenset({found})

    plain = Notation(pieces, stop_ids, vocabulary.special_ids, marks=marks or ())
    if marks is not None:
        if isinstance(reader, ResponseTemplate):
            without = notation_of(reader.reader, vocabulary, stop_ids, marks)
            return None if without is None else replace(without, certain="without tools")
        if isinstance(reader, JsonCalls):
            return replace(plain, json=reader)
        if isinstance(reader, Harmony):
            return replace(plain, stop_ids=stop_ids | {reader.marks["return_id"]}, channels=reader.channels)
        if not isinstance(reader, DefaultRenderer):
            return replace(plain, certain="never")
        parser = reader.config.tool_parser
        if parser is None:
            return plain
        calls = set_of(_CALL_MARKS.get(parser, ""))
        return replace(plain, call_ids=calls, call_end_ids=set_of("</tool_call>"), hermes=parser == "qwen3")
    if isinstance(reader, LlamaTurns):
        return replace(plain, strips=True, whole_calls=True)
    opener, closer, calls, ends = *map(token, THINK), set_of("<tool_call>"), set_of("</tool_call>")
    if opener is None or closer is None or not (calls and ends):
        return None
    known = replace(plain, thinking_ids=(opener, closer), strips=True, call_ids=calls, call_end_ids=ends)
    if type(reader) is Qwen3Renderer:
        return replace(known, spelled_ends=True, hermes=True)
    return known if isinstance(reader, Qwen35Renderer) else None


@dataclass(frozen=True, slots=True)
class Opened:
    """What a prompt has opened for its completion."""

    marks: Marks | None = None
    """The marks of thinking, where texts decide about it."""
    thinking: bool = False
    """Whether thinking, where tokens decide about it."""
    header: tuple[int, ...] = ()
    """The ids of a message's header, where a turn consists of messages."""
