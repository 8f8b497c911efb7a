"""Which renderer reproduces a model's chat template, and how far it may be trusted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast, get_args

from agentrl.errors import GatewayError
from agentrl.tokens.ends import written_ends
from agentrl.tokens.probes import CONTINUATIONS, CONVERSATIONS, Continuation, Conversation, Kind
from agentrl.tokens.reading import Reader, harmony, learned_reader, parsers_by_name, read, reads_calls, specs
from agentrl.tokens.template import ChatTemplate, Message, Messages, Tools, plain
from agentrl.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from renderers import ParsedResponse
    from renderers import Renderer as Library

__all__ = ["Candidate", "best_candidate", "build", "in_full", "judge", "judged", "known_renderers"]

_log = logging.getLogger(__name__)

_MARKS = {"gpt-oss": ("<|channel|>", 200_005)}
"""Renderers that download a vocabulary when they are built, and a token by whose id theirs is known."""
_DATES = {"date_string": "%d %b %Y", "conversation_start_date": "%Y-%m-%d"}
"""Settings of renderers that write a date, and its form."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One renderer of the ``renderers`` package, and where it was seen to follow the template."""

    name: str
    library: Library
    stop_ids: frozenset[int]
    thinking: bool = False
    """Whether it renders turns with thinking as the template does."""
    closing_ids: frozenset[int] = frozenset()
    """The ends of a turn after which the template's next turn follows."""
    extends: frozenset[Kind] = frozenset()
    """The kinds of continuation in which extending a chain gives what the template gives."""
    parses: bool = False
    """Whether it reads back what the template writes."""
    reads: bool = False
    """Whether it reads back the tool calls that the template writes, and the template writes some."""
    reader: Reader | None = None
    """What reads completions where that is not ``library``."""

    @property
    def in_full(self) -> bool:
        """Whether it is the template itself, rendered in full each turn."""
        return self.name == "default"

    def trusted(self) -> Candidate:
        """The candidate where there is no template to hold it against: its own word is taken."""
        extends: frozenset[Kind] = frozenset({("user", False), ("tool", False), ("tool", True)})
        return replace(self, thinking=True, extends=extends, reads=True, closing_ids=self.stop_ids)

    def render(self, messages: Sequence[Message], tools: Tools | None) -> list[int]:
        """The prompt for the next turn; ``messages`` as ``plain`` leaves them."""
        return self.library.render_ids(cast(Any, messages), tools=specs(tools), add_generation_prompt=True)

    def bridge(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], messages: Sequence[Message], tools: Tools | None
    ) -> list[int] | None:
        """The prompt after a completion and new messages, where the library has one."""
        bridged = self.library.bridge_to_next_turn(
            list(prompt_ids), list(completion_ids), cast(Any, messages), tools=specs(tools)
        )
        return None if bridged is None else bridged.token_ids

    def parse(self, completion_ids: list[int], tools: Tools | None, prompt_ids: Sequence[int]) -> ParsedResponse:
        """What the completion says."""
        reader = self.reader or self.library
        return read(reader, completion_ids, tools, list(prompt_ids))


@lru_cache(1)
def _configs() -> Mapping[str, type[Any]]:
    from renderers import RendererConfig

    union, *_ = get_args(RendererConfig)
    return {config.model_fields["name"].default: config for config in get_args(union)}


def known_renderers() -> list[str]:
    """Names of the package's renderers; ``auto``, ``default`` and ``custom`` are not among them."""
    return [name for name in _configs() if name not in ("auto", "default", "custom")]


def build(name: str, vocabulary: Vocabulary, day: date | None = None) -> Candidate:
    """The renderer ``name``, not yet held against a template; on ``day`` where it writes a date and one is given.

    Raises what the library raises.
    """
    from renderers import create_renderer

    config = _configs()[name]
    options: dict[str, Any] = {"thinking_retention": "all"}
    if day is not None:
        options |= {field: day.strftime(form) for field, form in _DATES.items() if field in config.model_fields}
    library = create_renderer(cast(Any, vocabulary), config(**options))
    return Candidate(name, library, frozenset(library.get_stop_token_ids()))


def judged(name: str, vocabulary: Vocabulary, template: ChatTemplate) -> Candidate | None:
    """The renderer ``name`` as ``judge`` has it, on its own date or the template's. Raises what ``build`` does."""
    found = judge(build(name, vocabulary), template)
    if found is None and not _DATES.keys().isdisjoint(_configs()[name].model_fields):
        found = judge(build(name, vocabulary, template.day), template)
    return found


def best_candidate(vocabulary: Vocabulary, template: ChatTemplate) -> Candidate | None:
    """The renderer that reproduces ``template`` on every probe, the most able first; ``None`` for none."""
    found: list[Candidate] = []
    for name in _buildable(vocabulary):
        try:
            part = judged(name, vocabulary, template)
        except Exception as error:
            # A renderer of another family fails in its own way: a missing token, a shape it does not know.
            _log.debug("renderer %s does not work with this tokenizer: %s", name, error)
            continue
        if part is not None:
            found.append(part)
    return max(found, key=lambda part: (part.reads, part.parses, len(part.extends), part.thinking), default=None)


def _buildable(vocabulary: Vocabulary) -> Iterator[str]:
    """Names of the renderers that can be built without anything being downloaded in vain."""
    for name in known_renderers():
        mark, token_id = _MARKS.get(name, (None, None))
        if mark is None or vocabulary.special_id(mark) == token_id:
            yield name


def in_full(vocabulary: Vocabulary, template: ChatTemplate) -> Candidate:
    """The template itself."""
    return replace(_with_reader(vocabulary, template), closing_ids=written_ends(vocabulary, template))


def _with_reader(vocabulary: Vocabulary, template: ChatTemplate) -> Candidate:
    """The package's default renderer, with whatever reads the calls of ``template``."""
    for parser in parsers_by_name():
        part = _default(vocabulary, parser)
        if reads_calls(part.library, template):
            return replace(part, reads=True)
    part = _default(vocabulary, "qwen3" if vocabulary.special_id("<tool_call>") is not None else None)
    channels = harmony(vocabulary)
    if channels is not None:
        return replace(part, reader=channels, reads=reads_calls(channels, template))
    for name in _buildable(vocabulary):
        try:
            reader = build(name, vocabulary).library
        except Exception as error:
            _log.debug("renderer %s does not work with this tokenizer: %s", name, error)
            continue
        if reads_calls(reader, template):
            return replace(part, reader=reader, reads=True)
    own = learned_reader(template, _default(vocabulary, None).library)
    if own is not None and reads_calls(own, template):
        return replace(part, reader=own, reads=True)
    return part


def _default(vocabulary: Vocabulary, tool_parser: str | None) -> Candidate:
    from renderers import DefaultRendererConfig, create_renderer

    config = DefaultRendererConfig(reasoning_parser="think", tool_parser=tool_parser)
    library = create_renderer(cast(Any, vocabulary), config)
    return Candidate("default", library, frozenset(library.get_stop_token_ids()))


def judge(part: Candidate, template: ChatTemplate) -> Candidate | None:
    """``part`` with what it was seen to do, or ``None`` where it departs from the template.

    Conversations that the template itself refuses prove nothing and are left out. Thinking is judged
    apart: a template may drop it, keep it or not know it.
    """
    verdicts = [(probe, _same(part, template, probe)) for probe in CONVERSATIONS]
    plainly = [same for probe, same in verdicts if not probe.thinking and same is not None]
    if len(plainly) < 2 or not all(plainly):
        return None
    thinking = all(same is not False for probe, same in verdicts if probe.thinking)
    outcomes = [(probe.kind, _extends(part, template, probe)) for probe in CONTINUATIONS]
    kinds = {kind for kind, good in outcomes if good} - {kind for kind, good in outcomes if good is False}
    parses = all(_parses(part, template, probe) for probe in CONTINUATIONS if not probe.kind[1])
    return replace(
        part,
        thinking=thinking,
        closing_ids=frozenset(_closing(part, template)),
        extends=frozenset(kinds),
        parses=parses,
        reads=reads_calls(part.library, template),
    )


def _same(part: Candidate, template: ChatTemplate, probe: Conversation) -> bool | None:
    try:
        wanted = template.render(probe.messages, probe.tools)
    except GatewayError:
        return None
    return part.render([plain(message) for message in probe.messages], probe.tools) == wanted


def _turn(part: Candidate, template: ChatTemplate, probe: Continuation) -> tuple[list[int], list[int], list[int]]:
    """Prompt, completion and the prompt after it, as the template writes them.

    The completion is what the whole conversation holds of the turn; where the turn thinks and the
    conversation has dropped that, what the policy samples. It is empty where there is none to be found.
    """
    prompt = template.render(probe.before, probe.tools)
    wanted = template.render([*probe.before, probe.turn, *probe.after], probe.tools)
    written = wanted
    if probe.kind[1]:
        alone = template.render([*probe.before, probe.turn], probe.tools, prompt=False)
        written = wanted if wanted[: len(alone)] == alone else alone
    if written[: len(prompt)] != prompt:
        return prompt, [], wanted
    ends = (n for n in range(len(prompt), len(written)) if written[n] in part.stop_ids)
    completion = written[len(prompt) : next(ends, len(prompt) - 1) + 1]
    if probe.kind[1] and probe.turn["reasoning_content"] not in template.decode(completion):
        return prompt, [], wanted
    return prompt, completion, wanted


def _closing(part: Candidate, template: ChatTemplate) -> Iterator[int]:
    """The ids with which the template ends the turns of the probes."""
    for probe in CONTINUATIONS:
        try:
            _, completion, _ = _turn(part, template, probe)
        except GatewayError:
            continue
        yield from completion[-1:]


def _extends(part: Candidate, template: ChatTemplate, probe: Continuation) -> bool | None:
    try:
        prompt, completion, wanted = _turn(part, template, probe)
    except GatewayError:
        return None
    new = [plain(message) for message in probe.after]
    return bool(completion) and part.bridge(prompt, completion, new, probe.tools) == wanted


def _parses(part: Candidate, template: ChatTemplate, probe: Continuation) -> bool:
    try:
        prompt, completion, _ = _turn(part, template, probe)
    except GatewayError:
        return True
    if not completion:
        return True
    parsed = part.parse(completion, probe.tools, prompt)
    calls = [(call.name, call.arguments) for call in parsed.tool_calls]
    return parsed.content == probe.turn["content"] and calls == _calls(probe.turn)


def _calls(message: Messages | Message) -> list[tuple[str, Any]]:
    written = cast(Message, message).get("tool_calls", [])
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in written]
