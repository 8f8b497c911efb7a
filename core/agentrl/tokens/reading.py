"""Which parser of the ``renderers`` package reads the tool calls that a template itself writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from agentrl.errors import GatewayError
from agentrl.tokens.json_calls import learned
from agentrl.tokens.parsing import assistant_message
from agentrl.tokens.probes import CONTINUATIONS, Continuation
from agentrl.tokens.template import ChatTemplate, Tools
from agentrl.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from renderers import ParsedResponse, ToolSpec
    from renderers import Renderer as Library

__all__ = ["Reader", "harmony", "learned_reader", "parsers_by_name", "read", "reads_calls", "specs"]


class Reader(Protocol):
    """The part of the package's renderers that reads completions."""

    def parse_response(
        self, token_ids: list[int], *, tools: list[ToolSpec] | None = None, prompt_ids: list[int] | None = None
    ) -> ParsedResponse:
        """What a completion says, after its prompt."""
        ...


class _Harmony:
    """Reads gpt-oss's channels. The package's own renderer for them needs a vocabulary that it downloads."""

    def __init__(self, vocabulary: Vocabulary, marks: dict[str, int]) -> None:
        self._vocabulary, self._marks = vocabulary, marks

    def parse_response(
        self, token_ids: list[int], *, tools: list[ToolSpec] | None = None, prompt_ids: list[int] | None = None
    ) -> ParsedResponse:
        from renderers.parsing import parse_gpt_oss

        start, prompt = self._marks["start_id"], prompt_ids or []
        opened = next((n for n in reversed(range(len(prompt))) if prompt[n] == start), len(prompt))
        header = prompt[opened:] if token_ids[:1] != [start] else []
        parsed = parse_gpt_oss(self._vocabulary, [*header, *token_ids], **self._marks)
        for call in parsed.tool_calls:
            if call.token_span is not None:
                begin, end = call.token_span
                call.token_span = (max(begin - len(header), 0), end - len(header))
        return parsed


def harmony(vocabulary: Vocabulary) -> Reader | None:
    """The reader of gpt-oss's channels where the vocabulary has them."""
    names = ("start", "end", "return", "call", "channel", "message", "constrain")
    marks = {f"{name}_id": vocabulary.special_id(f"<|{name}|>") for name in names}
    if None in marks.values():
        return None
    return _Harmony(vocabulary, cast("dict[str, int]", marks))


def parsers_by_name() -> list[str]:
    """Names of the package's parsers of tool calls that go with any template."""
    from renderers.parsers import TOOL_PARSERS

    return list(TOOL_PARSERS)


def read(reader: Reader, ids: list[int], tools: Tools | None, prompt_ids: list[int]) -> ParsedResponse:
    """What ``reader`` makes of a completion; arguments that are written as ``parameters`` are arguments to all."""
    parsed = reader.parse_response(ids, tools=specs(tools), prompt_ids=prompt_ids)
    for call in parsed.tool_calls:
        if call.arguments == {}:  # What parsers give that ask for ``arguments`` alone.
            call.arguments = _parameters(call.raw)
    return parsed


def _parameters(raw: str) -> Any:
    value = _parsed(raw)
    return value.get("parameters", {}) if isinstance(value, dict) and "arguments" not in value else {}


def reads_calls(reader: Reader, template: ChatTemplate) -> bool:
    """Whether ``reader`` gives back every call that the template writes, and it writes some."""
    seen = False
    for spoken in spoken_calls(template):
        prompt, completion = template.encode(spoken.prompt), template.up_to_end(template.encode(spoken.text))
        try:
            parsed = read(reader, completion, spoken.tools, prompt)
            said = assistant_message(parsed, completion, template.vocabulary, tools_offered=True, call_ids="call_")
        except Exception:  # A parser of another family fails in its own way.
            return False
        functions = [call["function"] for call in said.get("tool_calls", [])]
        if [(function["name"], _parsed(function["arguments"])) for function in functions] != spoken.calls:
            return False
        seen = True
    return seen


def learned_reader(template: ChatTemplate, library: Library) -> Reader | None:
    """The reader of calls in JSON between whatever marks the template writes; ``None`` where they are not in JSON."""
    vocabulary = template.vocabulary
    for spoken in spoken_calls(template):
        if spoken.alone:
            written = vocabulary.decode(template.up_to_end(template.encode(spoken.text)))
            ends = {vocabulary.decode([token]) for token in vocabulary.special_ids}
            end = max((end for end in ends if written.endswith(end)), key=len, default="")
            bare = written.removesuffix(end).rpartition("</think>")[2]
            return learned(bare, spoken.calls[0][0], library, vocabulary)
    return None


@dataclass(frozen=True, slots=True)
class Spoken:
    """A turn with calls as a template writes it."""

    prompt: str
    text: str
    """What comes after the prompt."""
    calls: list[tuple[str, Any]]
    """Names and arguments of the calls in it."""
    tools: Tools | None
    alone: bool
    """Whether it is one call and nothing else."""


def spoken_calls(template: ChatTemplate) -> Iterator[Spoken]:
    """Every turn with calls among the probes that the template writes, calls and all."""
    for probe in CONTINUATIONS:
        if not probe.kind[1] and probe.turn.get("tool_calls"):
            spoken = _spoken(template, probe)
            if spoken is not None:
                yield spoken


def _spoken(template: ChatTemplate, probe: Continuation) -> Spoken | None:
    try:
        prompt = template.text(probe.before, probe.tools)
        written = template.text([*probe.before, probe.turn], probe.tools, prompt=False)
    except GatewayError:
        return None
    text = written.removeprefix(prompt)
    if text == written:  # Where the next turn is to begin with thinking, one of the past may have none.
        bare = prompt.rstrip().removesuffix("<think>")
        if not written.startswith(bare):
            return None
        text = "\n</think>\n\n" + written[len(bare) :]
    functions = [call["function"] for call in probe.turn["tool_calls"] if call["function"]["name"] in text]
    calls = [(function["name"], json.loads(function["arguments"])) for function in functions]
    alone = len(calls) == 1 and not probe.turn["content"]
    return Spoken(prompt, text, calls, probe.tools, alone) if calls else None


def _parsed(arguments: str) -> object:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def specs(tools: Tools | None) -> list[ToolSpec] | None:
    """Tools as the package's signatures have them."""
    return cast("list[ToolSpec]", list(tools)) if tools else None
