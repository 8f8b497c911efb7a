"""The model: its folder and size, its tokenizer, and whether conversations keep their token ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from agentrl.doctor.case import Case
from agentrl.doctor.findings import Finding, note, ok, warning
from agentrl.doctor.history import Turn, conversation, walk
from agentrl.doctor.size import model_size
from agentrl.errors import GatewayError
from agentrl.inference.model_folder import find_model
from agentrl.tokens.renderer import Renderer, load_renderer
from agentrl.tokens.template import ChatTemplate

__all__ = ["model"]

_APPEND_ONLY = "use a template that never changes what it has written, or name a renderer by hand: model.renderer"


def model(case: Case) -> Iterator[Finding]:
    """Raises ``ConfigError`` for a model that is not found, not known, or has no tokenizer that can chat."""
    name = case.config.model.name
    case.doing(f"looking for {name}, which is downloaded where it is not here")
    case.folder = find_model(case.plugins, case.config.model)
    case.size = size = model_size(case.folder)
    yield ok(
        f"{name}: {size.kind} of {size.parameters / 1e6:,.1f} M parameters, in {case.folder}",
        folder=str(case.folder),
        parameters=size.parameters,
        context_length=size.context_length,
    )
    case.doing("choosing a renderer")
    case.renderer = renderer = load_renderer(case.folder, case.config.model.renderer)
    how = "found by holding each against the chat template" if case.config.model.renderer == "auto" else "as configured"
    yield ok(
        f"renderer {renderer.name}, {how}; {len(renderer.vocabulary.get_vocab()):,} tokens", renderer=renderer.name
    )
    if not renderer.vocabulary.chat_template:
        yield note("its tokenizer has no chat template, so that the renderer's word is taken for everything")
        return
    case.doing("rendering a conversation turn by turn")
    template = ChatTemplate(renderer.vocabulary, repr(name))
    yield from _history(renderer, template)
    if renderer.vocabulary.special_id("<think>") is not None:
        yield from _thinking(renderer, template)


def _history(renderer: Renderer, template: ChatTemplate) -> Iterator[Finding]:
    try:
        turns = list(walk(renderer, template, conversation(thinking=False), thinking=False))
    except GatewayError as error:
        yield warning(
            f"a conversation with tools cannot be rendered: {error.message}",
            fix="use a template with tools for agents that have any, or name a renderer by hand: model.renderer",
        )
        return
    forks = [turn.fork for turn in turns if turn.fork is not None]
    figures = {"turns": len(turns), "extended": len(turns) - len(forks), "forks": dict(Counter(forks))}
    changed = _first_change(turns)
    if changed is not None:
        place, (was, became) = changed
        yield warning(
            f"the chat template rewrites history: in turn {place} of {len(turns)} {was!r} became {became!r}; "
            "the token tree forks there, and everything behind it is computed again for every turn",
            fix=_APPEND_ONLY,
            **figures,
        )
    elif forks:
        yield warning(
            f"{len(forks)} of {len(turns)} turns are rendered in full ({forks[0]}): earlier completions are encoded "
            "again, so that the tree forks wherever the policy split a text in another way",
            fix=_APPEND_ONLY,
            **figures,
        )
    else:
        yield ok(
            f"prefixes are kept: {len(turns)} of {len(turns)} turns with tools extend the ids before them", **figures
        )


def _thinking(renderer: Renderer, template: ChatTemplate) -> Iterator[Finding]:
    try:
        turns = list(walk(renderer, template, conversation(thinking=True), thinking=True))
    except GatewayError:
        return  # a template that takes no thinking: history has none either
    forks = sum(turn.fork is not None for turn in turns)
    if forks:
        yield note(
            f"of turns that think, {forks} of {len(turns)} are followed by a fork, as the template drops thinking "
            "from history: what was thought is trained, and not seen again",
            thinking_turns=len(turns),
            thinking_forks=forks,
        )


def _first_change(turns: list[Turn]) -> tuple[int, tuple[str, str]] | None:
    changes = ((place, turn.rewritten) for place, turn in enumerate(turns, start=1))
    return next(((place, rewritten) for place, rewritten in changes if rewritten is not None), None)
