"""Which parser of the ``renderers`` package reads the tool calls that a template itself writes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, cast

from agentrl.errors import GatewayError
from agentrl.tokens.probes import CONTINUATIONS, Continuation
from agentrl.tokens.template import ChatTemplate, Tools
from agentrl.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from renderers import ParsedResponse, ToolSpec

__all__ = ["Reader", "harmony", "parsers_by_name", "reads_calls", "specs"]


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


def reads_calls(reader: Reader, template: ChatTemplate, *, probes: Iterable[Continuation] = CONTINUATIONS) -> bool:
    """Whether ``reader`` gives back every call that the template writes, and it writes some."""
    seen = False
    for probe in probes:
        if probe.kind[1] or not probe.turn.get("tool_calls"):
            continue
        spoken = _spoken(template, probe)
        if spoken is None:
            continue
        prompt, completion, calls = spoken
        try:
            parsed = reader.parse_response(completion, tools=specs(probe.tools), prompt_ids=prompt)
        except Exception:  # A parser of another family fails in its own way.
            return False
        if [(call.name, _arguments(call.arguments)) for call in parsed.tool_calls] != calls:
            return False
        seen = True
    return seen


def _spoken(template: ChatTemplate, probe: Continuation) -> tuple[list[int], list[int], list[Any]] | None:
    """Prompt and completion of a turn as the template writes it, and the calls in it; ``None`` for none."""
    try:
        prompt = template.text(probe.before, probe.tools)
        written = template.text([*probe.before, probe.turn], probe.tools, prompt=False)
    except GatewayError:
        return None
    spoken = written.removeprefix(prompt)
    if spoken == written:  # Where the next turn is to begin with thinking, one of the past may have none.
        bare = prompt.rstrip().removesuffix("<think>")
        if not written.startswith(bare):
            return None
        spoken = "\n</think>\n\n" + written[len(bare) :]
    functions = [call["function"] for call in probe.turn["tool_calls"] if call["function"]["name"] in spoken]
    if not functions:
        return None
    calls = [(function["name"], json.loads(function["arguments"])) for function in functions]
    return template.encode(prompt), template.up_to_end(template.encode(spoken)), calls


def _arguments(arguments: object) -> object:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def specs(tools: Tools | None) -> list[ToolSpec] | None:
    """Tools as the package's signatures have them."""
    return cast("list[ToolSpec]", list(tools)) if tools else None
