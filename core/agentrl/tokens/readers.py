"""What reads the completions of a model whose template is rendered in full: the package's parsers, tried one by one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

from agentrl.tokens.ends import written_ends
from agentrl.tokens.json_calls import learned
from agentrl.tokens.library import build, buildable, default
from agentrl.tokens.reading import Reader, reads_calls, spoken_calls
from agentrl.tokens.template import ChatTemplate
from agentrl.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from renderers import ParsedResponse, ToolSpec
    from renderers import Renderer as Library

__all__ = ["channels", "reader_of_calls"]

_log = logging.getLogger(__name__)


def reader_of_calls(template: ChatTemplate) -> Reader | None:
    """The first reader of the calls that ``template`` writes; ``None`` where none reads them all, or it writes none."""
    if next(spoken_calls(template), None) is None:
        return None
    ends = written_ends(template.vocabulary, template)
    return next((reader for reader in _readers(template) if reads_calls(reader, template, ends)), None)


def _readers(template: ChatTemplate) -> Iterator[Reader]:
    """Parsers that go with any template, then those of single families, then one that is made for the template."""
    vocabulary = template.vocabulary
    for parser in _parsers():
        yield default(vocabulary, parser).library
    if (harmony := channels(vocabulary)) is not None:
        yield harmony
    for name in buildable(vocabulary):
        try:
            yield build(name, vocabulary).library
        except Exception as error:
            _log.debug("renderer %s does not work with this tokenizer: %s", name, error)
    if (own := _learned(template, default(vocabulary, None).library)) is not None:
        yield own


def _parsers() -> list[str]:
    """Names of the package's parsers of tool calls that go with any template."""
    from renderers.parsers import TOOL_PARSERS

    return list(TOOL_PARSERS)


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
        if not (parsed.content or parsed.reasoning_content or parsed.tool_calls):
            parsed.content = self._vocabulary.decode(token_ids)  # Nothing of it is in a channel.
        return parsed


def channels(vocabulary: Vocabulary) -> Reader | None:
    """The reader of gpt-oss's channels where the vocabulary has them."""
    names = ("start", "end", "return", "call", "channel", "message", "constrain")
    marks = {f"{name}_id": vocabulary.special_id(f"<|{name}|>") for name in names}
    if None in marks.values():
        return None
    return _Harmony(vocabulary, cast("dict[str, int]", marks))


def _learned(template: ChatTemplate, library: Library) -> Reader | None:
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
