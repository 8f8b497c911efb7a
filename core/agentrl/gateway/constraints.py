"""What a request asks of the form of its completion, as the grammar that it is sampled under, and who is to blame.

A forced tool call, a response format, and arguments that follow a strict tool's schema all become one grammar. Where
the backend has no grammars, the first two are refused, and strict tools are counted as unmet.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.errors import GatewayError, UnsupportedSampling
from agentrl.gateway.contract import ModelRequest
from agentrl.inference.contract import Capabilities, Grammar
from agentrl.tokens.forms import Forms

__all__ = ["constraint", "ill_formed", "unmet"]

_STRICT = "strict"
_DROPPED = {"tool_choice": "tool_choice: null", "response_format": "response_format: null", "tools": "strict: false"}
"""By field of a request, the key of ``rollout.override`` that gives the policy its freedom back."""


def constraint(
    request: ModelRequest, forms: Forms, capabilities: Capabilities, prompt_ids: Sequence[int]
) -> Grammar | None:
    """Return the grammar of a completion of ``prompt_ids``; ``None`` where it is free.

    Raises ``GatewayError`` (400) where the backend has no grammars, or the model's form of tool calls is unknown.
    """
    tools = request.tools if request.calls_tools else None
    if not (request.must_call or request.grammar or request.one_call or _strict(request)):
        return None
    if "grammar" in capabilities.sampling:
        return forms.grammar(
            prompt_ids, tools, must_call=request.must_call, one_call=request.one_call, content=request.grammar
        )
    if not (request.must_call or request.grammar):
        return None
    field = "response_format" if request.grammar else "tool_choice"
    raise GatewayError(
        f"{field} cannot be kept: the inference backend samples under no grammar",
        param=field,
        code="unsupported_value",
        fix=f"leave the form to the policy with rollout.override: {{{_DROPPED[field]}}}, or use a backend that has "
        "grammars, such as torch",
    )


def unmet(request: ModelRequest, grammar: Grammar | None) -> tuple[str, ...]:
    """Return what the request asked for and does not get: not its strict tools where there is a grammar."""
    if grammar is None:
        return request.unmet
    return tuple(name for name in request.unmet if name != _STRICT)


def ill_formed(error: UnsupportedSampling, request: ModelRequest) -> GatewayError:
    """Return the refusal of a request whose grammar the backend refused, which names the field that it came from."""
    field = _field(request)
    fix = f"{error.fix}; or set rollout.override: {{{_DROPPED[field]}}}"
    return GatewayError(f"{field}: {error.message}", param=field, code="invalid_value", fix=fix)


def _strict(request: ModelRequest) -> bool:
    tools = request.tools if request.calls_tools and request.tools else ()
    return any(tool["function"].get(_STRICT) for tool in tools)


def _field(request: ModelRequest) -> str:
    """The field that a request's grammar comes from, the likeliest to be wrong first."""
    if request.grammar is not None:
        return "response_format"
    return "tool_choice" if request.must_call and not _strict(request) else "tools"
