"""The model: its folder and size, its tokenizer, and whether conversations keep their token ids."""

from __future__ import annotations

from collections.abc import Iterator

from agentrl.doctor.case import Case
from agentrl.doctor.findings import Finding, note, ok, warning
from agentrl.doctor.prefixes import prefixes
from agentrl.doctor.size import model_size
from agentrl.errors import AgentRLError
from agentrl.inference.model_folder import find_model
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.template import ChatTemplate
from agentrl.training.backends import is_chat, untrainable
from agentrl.training.parts import load_chat

__all__ = ["model"]

_BY_TEMPLATE = ("auto", "default")
"""Values of ``model.renderer`` that follow the template."""


def model(case: Case) -> Iterator[Finding]:
    """Raises ``ConfigError`` for a model that is not found, not known, or has no tokenizer that can chat.

    So it does for one behind an endpoint, which has no folder and is not trained.
    """
    if _is_behind_endpoint(case):
        raise untrainable(case.config)
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
    case.renderer = renderer = load_chat(case.folder, case.config.model).renderer
    how = "found by holding each against the chat template" if case.config.model.renderer == "auto" else "as configured"
    yield ok(
        f"renderer {renderer.name}, {how}; {len(renderer.vocabulary.get_vocab()):,} tokens", renderer=renderer.name
    )
    yield tools(renderer)
    if renderer.day is not None:
        day = renderer.day.isoformat()
        yield note(
            f"its chat template writes the date: {day} in every prompt of a run; model.date names another", date=day
        )
    if not renderer.vocabulary.chat_template:
        yield note("its tokenizer has no chat template, so that the renderer's word is taken for everything")
    elif case.config.model.renderer not in _BY_TEMPLATE and renderer.warning is not None:
        yield warning(renderer.warning, fix="set model.renderer=auto")
    else:
        case.doing("rendering a conversation turn by turn")
        yield from prefixes(renderer, ChatTemplate(renderer.vocabulary, repr(name), renderer.day))


def tools(renderer: Renderer) -> Finding:
    """Whether agents with tools can be served; whether this one has any shows itself when it runs."""
    able = renderer.abilities
    if able.tools:
        return ok("agents with tools: definitions, calls and results reach the prompt, and calls are read", tools=True)
    lost = able.lost()
    because = f"never puts {lost} into the prompt" if lost else "writes calls in a form that cannot be read"
    return note(f"agents with tools are refused: its chat template {because}; see model.chat_template", tools=False)


def _is_behind_endpoint(case: Case) -> bool:
    try:
        return is_chat(case.config, case.plugins)
    except AgentRLError:  # A backend that is none is told of with the other names, in section config.
        return False
