"""How a run of the SDK ended that returned nothing: by the policy's mistake, or because something is wrong."""

from __future__ import annotations

import traceback

from agents import (
    AgentsException,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelBehaviorError,
    ModelRefusalError,
    OutputGuardrailTripwireTriggered,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
    UserError,
)

from agentrl.agents.exceptions import code_location
from agentrl.errors import AgentError, PolicyError

__all__ = ["outcome_of"]

_MISTAKES = (
    MaxTurnsExceeded,
    ModelBehaviorError,
    ModelRefusalError,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)


def outcome_of(error: AgentsException, last_words: str) -> Exception:
    """What an episode raises whose run ended in ``error``.

    The policy's mistakes are a ``PolicyError`` with its ``last_words`` as the answer, or none where a guardrail stopped
    it. A guardrail that turns the task away is an ``AgentError``, for the policy has no part in that; so is a tool that
    raises, with the place. Anything else is ``error`` itself.
    """
    match error:
        case OutputGuardrailTripwireTriggered():
            name = error.guardrail_result.guardrail.get_name()
            return PolicyError(f"the output guardrail {name!r} stopped the answer")
        case InputGuardrailTripwireTriggered():
            return AgentError(
                f"the input guardrail {error.guardrail_result.guardrail.get_name()!r} turned the task away",
                fix="leave such tasks out of the task set, or the guardrail out of the agent",
            )
        case UserError(__cause__=Exception() as cause):
            return AgentError(f"{error.message}{code_location(traceback.extract_tb(cause.__traceback__))}")
        case _ if isinstance(error, _MISTAKES):
            return PolicyError(str(error), answer=last_words)
    return error
