"""Which renderer reproduces a model's chat template, and how far it may be trusted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from agentrl.errors import GatewayError
from agentrl.tokens.ends import written_ends
from agentrl.tokens.library import Candidate, build, buildable, default, has_date
from agentrl.tokens.probes import CONTINUATIONS, CONVERSATIONS, Continuation, Conversation
from agentrl.tokens.readers import channels, reader_of_calls
from agentrl.tokens.reading import reads_calls
from agentrl.tokens.template import ChatTemplate, Message, Messages, plain
from agentrl.tokens.vocabulary import Vocabulary

__all__ = ["best_candidate", "in_full", "judged"]

_log = logging.getLogger(__name__)


def judged(name: str, vocabulary: Vocabulary, template: ChatTemplate) -> Candidate | None:
    """The renderer ``name`` as ``_judge`` has it, on its own date or the template's. Raises what ``build`` does."""
    found = _judge(build(name, vocabulary), template)
    if found is None and has_date(name):
        found = _judge(build(name, vocabulary, template.day), template)
    return found


def best_candidate(vocabulary: Vocabulary, template: ChatTemplate) -> Candidate | None:
    """The renderer that reproduces ``template`` on every probe, the most able first; ``None`` for none."""
    found: list[Candidate] = []
    for name in buildable(vocabulary):
        try:
            part = judged(name, vocabulary, template)
        except Exception as error:
            # A renderer of another family fails in its own way: a missing token, a shape it does not know.
            _log.debug("renderer %s does not work with this tokenizer: %s", name, error)
            continue
        if part is not None:
            found.append(part)
    best = max(found, key=lambda part: (part.reads, part.parses, len(part.extends), part.thinking), default=None)
    return best if best is None or best.reads else _with_reader(best, template)


def in_full(vocabulary: Vocabulary, template: ChatTemplate) -> Candidate:
    """The template itself."""
    part = default(vocabulary, "qwen3" if vocabulary.special_id("<tool_call>") is not None else None)
    return replace(_with_reader(part, template), closing_ids=written_ends(vocabulary, template))


def _with_reader(part: Candidate, template: ChatTemplate) -> Candidate:
    """``part`` with whatever reads the calls of ``template``."""
    reader = reader_of_calls(template)
    return replace(part, reader=reader or channels(template.vocabulary), reads=reader is not None)


def _judge(part: Candidate, template: ChatTemplate) -> Candidate | None:
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
        reads=reads_calls(part.library, template, part.stop_ids),
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
