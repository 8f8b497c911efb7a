"""The renderers of the ``renderers`` package, each by its name, as candidates for a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast, get_args

from agentrl.errors import GatewayError
from agentrl.tokens.probes import Kind
from agentrl.tokens.reading import Reader, read, reads_calls, specs
from agentrl.tokens.template import Message, Messages, Tools, plain
from agentrl.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from renderers import ParsedResponse
    from renderers import Renderer as Library

__all__ = ["Candidate", "build", "buildable", "default", "has_date", "known_renderers"]

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

    def trusted(self, vocabulary: Vocabulary) -> Candidate:
        """The candidate where there is no template to hold it against: its own word is taken for what it writes."""
        extends: frozenset[Kind] = frozenset({("user", False), ("tool", False), ("tool", True)})
        reads = reads_calls(self.library, _OwnText(self.library, vocabulary), self.stop_ids)
        closing = frozenset(self._closes(vocabulary)) or self.stop_ids
        return replace(self, thinking=True, extends=extends, reads=reads, closing_ids=closing)

    def _closes(self, vocabulary: Vocabulary) -> Iterator[int]:
        """The ends with which it goes on after a turn that has none, as a token limit leaves it."""
        ask, result = {"role": "user", "content": "Hi"}, {"role": "tool", "tool_call_id": "1", "content": "7"}
        for new in (ask, result):
            with suppress(Exception):  # The boundary to the library: where it cannot go on, all is rendered in full.
                cut = [*self.render([ask], None), *vocabulary.encode("Hello")]
                bridged = self.bridge(cut[:-1], cut[-1:], [new], None) or []
                yield from self.stop_ids.intersection(bridged[len(cut) : len(cut) + 1])

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


def has_date(name: str) -> bool:
    """Whether the renderer ``name`` writes a date that it can be given."""
    return not _DATES.keys().isdisjoint(_configs()[name].model_fields)


def buildable(vocabulary: Vocabulary) -> Iterator[str]:
    """Names of the renderers that can be built without anything being downloaded in vain."""
    for name in known_renderers():
        mark, token_id = _MARKS.get(name, (None, None))
        if mark is None or vocabulary.special_id(mark) == token_id:
            yield name


def default(vocabulary: Vocabulary, tool_parser: str | None) -> Candidate:
    """The package's default renderer, which uses the chat template, with its parser of calls of that name."""
    from renderers import DefaultRendererConfig, create_renderer

    config = DefaultRendererConfig(reasoning_parser="think", tool_parser=tool_parser)
    library = create_renderer(cast(Any, vocabulary), config)
    return Candidate("default", library, frozenset(library.get_stop_token_ids()))


@dataclass(frozen=True, slots=True)
class _OwnText:
    """What a renderer writes, in the place of a template."""

    library: Library
    vocabulary: Vocabulary

    def text(self, messages: Messages, tools: Tools | None = None, *, prompt: bool = True) -> str:
        given = cast(Any, [plain(message) for message in messages])
        try:
            ids = self.library.render_ids(given, tools=specs(tools), add_generation_prompt=prompt)
        except Exception as error:  # The boundary to the library: what it does not write, it does not read.
            raise GatewayError(f"the renderer refuses these messages: {error}") from error
        return self.vocabulary.decode(ids)
