"""Reading completions, and whether a reader gives back the tool calls that a template itself writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol, cast

from agentrl.errors import GatewayError
from agentrl.tokens.parsing import assistant_message
from agentrl.tokens.probes import CONTINUATIONS, Continuation
from agentrl.tokens.template import Messages, Tools
from agentrl.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from renderers import ParsedResponse, ToolSpec

__all__ = ["Reader", "Spoken", "Writer", "read", "reads_calls", "specs", "spoken_calls"]


class Reader(Protocol):
    """The part of the package's renderers that reads completions."""

    def parse_response(
        self, token_ids: list[int], *, tools: list[ToolSpec] | None = None, prompt_ids: list[int] | None = None
    ) -> ParsedResponse:
        """What a completion says, after its prompt."""
        ...


class Writer(Protocol):
    """What writes conversations: a chat template, or a renderer in its place."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What encodes the text."""
        ...

    def text(self, messages: Messages, tools: Tools | None = None, *, prompt: bool = True) -> str:
        """The conversation, with the header of the next turn where ``prompt``. Raises ``GatewayError``."""
        ...


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


def reads_calls(reader: Reader, writer: Writer, ends: frozenset[int]) -> bool:
    """Whether ``reader`` gives back every call that ``writer`` writes, and it writes some; turns end at ``ends``."""
    seen, vocabulary = False, writer.vocabulary
    for spoken in spoken_calls(writer):
        prompt = vocabulary.encode(spoken.prompt)
        completion = list(takewhile(lambda token: token not in ends, vocabulary.encode(spoken.text)))
        try:
            parsed = read(reader, completion, spoken.tools, prompt)
            said = assistant_message(parsed, completion, vocabulary, tools_offered=True, call_ids="call_")
        except Exception:  # A parser of another family fails in its own way.
            return False
        functions = [call["function"] for call in said.get("tool_calls", [])]
        if [(function["name"], _parsed(function["arguments"])) for function in functions] != spoken.calls:
            return False
        seen = True
    return seen


@dataclass(frozen=True, slots=True)
class Spoken:
    """A turn with calls as it is written."""

    prompt: str
    text: str
    """What comes after the prompt."""
    calls: list[tuple[str, Any]]
    """Names and arguments of the calls in it."""
    tools: Tools | None
    alone: bool
    """Whether it is one call and nothing else."""


def spoken_calls(writer: Writer) -> Iterator[Spoken]:
    """Every turn with calls among the probes that ``writer`` writes, calls and all."""
    for probe in CONTINUATIONS:
        if not probe.kind[1] and probe.turn.get("tool_calls"):
            spoken = _spoken(writer, probe)
            if spoken is not None:
                yield spoken


def _spoken(writer: Writer, probe: Continuation) -> Spoken | None:
    try:
        prompt = writer.text(probe.before, probe.tools)
        written = writer.text([*probe.before, probe.turn], probe.tools, prompt=False)
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
