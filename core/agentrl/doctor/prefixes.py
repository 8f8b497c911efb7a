"""Whether the model's template keeps prefixes, and what it costs where it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from agentrl.doctor.findings import Finding, note, ok, problem, warning
from agentrl.doctor.history import Turn, walk
from agentrl.errors import ConfigError, GatewayError
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.template import ChatTemplate

__all__ = ["prefixes"]

_APPEND_ONLY = "use a template that never changes what it has written, or name a renderer by hand: model.renderer"


def prefixes(renderer: Renderer, template: ChatTemplate) -> Iterator[Finding]:
    """Let a conversation grow turn by turn: with tools where the template has any, and with thinking."""
    try:
        yield _kept(walk(renderer, template), "turns with tools")
    except GatewayError as error:
        yield note(f"conversations with tools cannot be rendered: {error.message}")
        yield _without_tools(renderer, template)
    if renderer.vocabulary.special_id("<think>") is not None:
        yield from _thinking(renderer, template)


def _without_tools(renderer: Renderer, template: ChatTemplate) -> Finding:
    try:
        return _kept(walk(renderer, template, tools=False), "turns")
    except GatewayError as error:
        fix = "mend its chat_template.jinja, or use an instruction-tuned model"
        return problem(f"no conversation can be rendered: {error.message}", fix=fix, like=ConfigError, blocks=True)


def _kept(turns: Sequence[Turn], what: str) -> Finding:
    forks = [turn.fork for turn in turns if turn.fork is not None]
    figures = {"turns": len(turns), "extended": len(turns) - len(forks), "forks": dict(Counter(forks))}
    for place, turn in enumerate(turns, start=1):
        if turn.rewritten is not None:
            was, became = turn.rewritten
            text = (
                f"the chat template rewrites history: in turn {place} of {len(turns)} {was!r} became {became!r}; the "
                "token tree forks there, and everything behind it is computed again for every turn"
            )
            return warning(text, fix=_APPEND_ONLY, **figures)
    if forks:
        text = (
            f"{len(forks)} of {len(turns)} {what} are rendered in full ({forks[0]}): earlier completions are encoded "
            "again, so that the token tree forks wherever the policy split a text in another way"
        )
        return warning(text, fix=_APPEND_ONLY, **figures)
    return ok(f"prefixes are kept: {len(turns)} of {len(turns)} {what} extend the ids before them", **figures)


def _thinking(renderer: Renderer, template: ChatTemplate) -> Iterator[Finding]:
    try:
        turns = walk(renderer, template, thinking=True)
    except GatewayError:
        return  # Nothing that thinks can be rendered with tools: what was said above says why.
    forks = sum(turn.fork is not None for turn in turns)
    if forks:
        yield note(
            f"{forks} of {len(turns)} turns that think are followed by a fork, as the template drops thinking from "
            "history: what was thought is trained, and not seen again",
            thinking_turns=len(turns),
            thinking_forks=forks,
        )
