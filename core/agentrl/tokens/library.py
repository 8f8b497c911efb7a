"""The renderers and parsers of the ``renderers`` package: built by name, and tried on a template's own tool calls."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol, cast, get_args

from agentrl.errors import GatewayError
from agentrl.tokens.incremental.notation import Channels
from agentrl.tokens.probes import CONTINUATIONS, Continuation, written_ends
from agentrl.tokens.renderer import Candidate, Reader, assistant_message, read
from agentrl.tokens.response_template import response_template
from agentrl.tokens.template import ChatTemplate, Messages, Tools
from agentrl.tokens.tool_calls import learned
from agentrl.tokens.vocabulary import MARK, Vocabulary

if TYPE_CHECKING:
    from renderers import ParsedResponse, ToolSpec
    from renderers import Renderer as Library

__all__ = [
    "Harmony",
    "LlamaTurns",
    "build",
    "buildable",
    "default",
    "harmony_reader",
    "has_date",
    "known_renderers",
    "reader_of_calls",
    "reads_calls",
]

_log = logging.getLogger(__name__)

_MARKS = {"gpt-oss": ("<|channel|>", 200_005)}
"""Renderers that download a vocabulary when they are built, and a token whose id tells that it is the model's own."""
_DATES = {"date_string": "%d %b %Y", "conversation_start_date": "%Y-%m-%d"}
"""The settings by which renderers are given a date, and its format."""


@lru_cache(1)
def _configs() -> Mapping[str, type[Any]]:
    from renderers import RendererConfig

    union, *_ = get_args(RendererConfig)
    return {config.model_fields["name"].default: config for config in get_args(union)}


def known_renderers() -> list[str]:
    """Return the names of the package's renderers for model families."""
    return [name for name in _configs() if name not in ("auto", "default", "custom")]


def build(name: str, vocabulary: Vocabulary, day: date | None = None) -> Candidate:
    """Return the renderer ``name``, not yet compared with a template; ``day`` is the date that it writes, if it does.

    Raises what the library raises.
    """
    from renderers import Llama3Renderer, create_renderer

    config = _configs()[name]
    options: dict[str, Any] = {"thinking_retention": "all"}
    if day is not None:
        options |= {field: day.strftime(form) for field, form in _DATES.items() if field in config.model_fields}
    library = create_renderer(cast(Any, vocabulary), config(**options))
    reader = LlamaTurns(library, vocabulary) if isinstance(library, Llama3Renderer) else None
    return Candidate(name, library, frozenset(library.get_stop_token_ids()), reader=reader)


def has_date(name: str) -> bool:
    """Return whether the renderer ``name`` writes a date that can be set."""
    return not _DATES.keys().isdisjoint(_configs()[name].model_fields)


def buildable(vocabulary: Vocabulary) -> Iterator[str]:
    """Yield the names of the renderers to try, without those that would download a vocabulary in vain."""
    for name in known_renderers():
        mark, token_id = _MARKS.get(name, (None, None))
        if mark is None or vocabulary.special_id(mark) == token_id:
            yield name


def default(vocabulary: Vocabulary, tool_parser: str | None) -> Candidate:
    """Return the package's default renderer, which uses the chat template, with its tool call parser of that name."""
    from renderers import DefaultRendererConfig, create_renderer

    config = DefaultRendererConfig(reasoning_parser="think", tool_parser=tool_parser)
    library = create_renderer(cast(Any, vocabulary), config)
    return Candidate("default", library, frozenset(library.get_stop_token_ids()))


class _Writer(Protocol):
    """A chat template, or a renderer that stands in its place."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def text(self, messages: Messages, tools: Tools | None = None, *, prompt: bool = True) -> str: ...


@dataclass(frozen=True, slots=True)
class _WrittenCalls:
    """An assistant turn with tool calls, as a template writes it."""

    prompt: str
    text: str
    """What comes after the prompt."""
    calls: list[tuple[str, Any]]
    """The name and the arguments of each call in the text."""
    tools: Tools | None
    alone: bool
    """Whether the turn is one call and no other content."""


def reads_calls(reader: Reader, writer: _Writer, ends: frozenset[int]) -> bool:
    """Return whether ``reader`` gives back every tool call that ``writer`` writes in the probes, at least one.

    ``writer`` is a chat template or has its ``text`` and ``vocabulary``; ``ends`` are the ids that end its turns.
    """
    seen, vocabulary = False, writer.vocabulary
    for written in _written_calls(writer):
        prompt = vocabulary.encode(written.prompt)
        completion = list(takewhile(lambda token: token not in ends, vocabulary.encode(written.text)))
        try:
            parsed = read(reader, completion, written.tools, prompt)
            message = assistant_message(parsed, completion, vocabulary, tools_offered=True, call_ids="call_")
        except Exception:  # A parser of another family fails in its own way.
            return False
        functions = [call["function"] for call in message.get("tool_calls", [])]
        if [(function["name"], _value(function["arguments"])) for function in functions] != written.calls:
            return False
        seen = True
    return seen


def _written_calls(writer: _Writer) -> Iterator[_WrittenCalls]:
    """Every probe turn with calls but no thinking, as ``writer`` writes it, where it writes the calls."""
    for probe in CONTINUATIONS:
        if not probe.kind[1] and probe.turn.get("tool_calls"):
            written = _written_turn(writer, probe)
            if written is not None:
                yield written


def _written_turn(writer: _Writer, probe: Continuation) -> _WrittenCalls | None:
    try:
        prompt = writer.text(probe.before, probe.tools)
        whole = writer.text([*probe.before, probe.turn], probe.tools, prompt=False)
    except GatewayError:
        return None
    text = whole.removeprefix(prompt)
    if text == whole:  # The prompt may open thinking that a turn of the past does not have.
        bare = prompt.rstrip().removesuffix("<think>")
        if not whole.startswith(bare):
            return None
        text = "\n</think>\n\n" + whole[len(bare) :]
    functions = [call["function"] for call in probe.turn["tool_calls"] if call["function"]["name"] in text]
    calls = [(function["name"], json.loads(function["arguments"])) for function in functions]
    alone = len(calls) == 1 and not probe.turn["content"]
    return _WrittenCalls(prompt, text, calls, probe.tools, alone) if calls else None


def _value(arguments: str) -> object:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def reader_of_calls(template: ChatTemplate) -> Reader | None:
    """Return the reader of the tool calls that ``template`` writes, for a model without a renderer.

    It is the response template of the tokenizer if it has one that gives back all of them, else the first parser that
    does; ``None`` where none does, or the template writes no calls.
    """
    if next(_written_calls(template), None) is None:
        return None
    ends, vocabulary = written_ends(template), template.vocabulary
    known = next((reader for reader in _readers(template) if reads_calls(reader, template, ends)), None)
    own = response_template(vocabulary, known or default(vocabulary, None).library)
    return own if own is not None and reads_calls(own, template, ends) else known


def _readers(template: ChatTemplate) -> Iterator[Reader]:
    """Parsers that go with any template, then those of single families, then one that is made for the template."""
    from renderers.parsers import TOOL_PARSERS

    vocabulary = template.vocabulary
    for parser in TOOL_PARSERS:
        yield default(vocabulary, parser).library
    if (harmony := harmony_reader(vocabulary)) is not None:
        yield harmony
    for name in buildable(vocabulary):
        try:
            yield build(name, vocabulary).library
        except Exception as error:
            _log.debug("renderer %s does not work with this tokenizer: %s", name, error)
    if (own := _learned(template, default(vocabulary, None).library)) is not None:
        yield own


def _learned(template: ChatTemplate, library: Library) -> Reader | None:
    """The reader of JSON calls between whatever marks the template writes; ``None`` where calls are not JSON."""
    vocabulary = template.vocabulary
    for written in _written_calls(template):
        if written.alone:
            text = vocabulary.decode(template.up_to_end(vocabulary.encode(written.text)))
            ends = {vocabulary.decode([token]) for token in vocabulary.special_ids}
            end = max((end for end in ends if text.endswith(end)), key=len, default="")
            bare = text.removesuffix(end).rpartition("</think>")[2]
            return learned(bare, written.calls[0][0], library, vocabulary)
    return None


class LlamaTurns:
    """Reads Llama's turns. The package's reader leaves out all before the last header that a policy writes."""

    def __init__(self, library: Library, vocabulary: Vocabulary) -> None:
        header = "<|end_header_id|>"
        self._library = library
        self._header = vocabulary.convert_tokens_to_ids(header)
        self._spelled = vocabulary.encode(f"{header[0]}{MARK}{header[1:]}")

    def parse_response(
        self, token_ids: list[int], *, tools: list[ToolSpec] | None = None, prompt_ids: list[int] | None = None
    ) -> ParsedResponse:
        spelled = [each for token in token_ids for each in (self._spelled if token == self._header else (token,))]
        return self._library.parse_response(spelled, tools=tools, prompt_ids=prompt_ids)


def harmony_reader(vocabulary: Vocabulary) -> Reader | None:
    """Return the reader of gpt-oss's channels if the vocabulary has their tokens."""
    names = ("start", "end", "return", "call", "channel", "message", "constrain")
    marks = {f"{name}_id": vocabulary.special_id(f"<|{name}|>") for name in names}
    if None in marks.values():
        return None
    return Harmony(vocabulary, cast("dict[str, int]", marks))


class Harmony:
    """Reads gpt-oss's channels. The package's own renderer for them needs a vocabulary that it downloads."""

    def __init__(self, vocabulary: Vocabulary, marks: dict[str, int]) -> None:
        """``marks`` are the ids of the tokens around messages, by the names of the package's parser."""
        self._vocabulary, self.marks = vocabulary, marks
        start, end, call = (marks[f"{name}_id"] for name in ("start", "end", "call"))
        self.channels = Channels(start, marks["channel_id"], marks["message_id"], frozenset({start, end, call}))

    def parse_response(
        self, token_ids: list[int], *, tools: list[ToolSpec] | None = None, prompt_ids: list[int] | None = None
    ) -> ParsedResponse:
        from renderers.parsing import parse_gpt_oss

        header = self.channels.header(prompt_ids or []) if token_ids[:1] != [self.channels.start] else ()
        parsed = parse_gpt_oss(self._vocabulary, [*header, *token_ids], **self.marks)
        for call in parsed.tool_calls:
            if call.token_span is not None:
                begin, end = call.token_span
                call.token_span = (max(begin - len(header), 0), end - len(header))
        if not (parsed.content or parsed.reasoning_content or parsed.tool_calls):
            parsed.content = self._vocabulary.decode(token_ids)  # The completion is in no channel.
        return parsed
