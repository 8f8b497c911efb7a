"""How a run of the SDK ended that returned nothing: by the policy's mistake, or because something is wrong."""

from __future__ import annotations

from agents import (
    AgentsException,
    InputGuardrailTripwireTriggered,
    ItemHelpers,
    MaxTurnsExceeded,
    MessageOutputItem,
    ModelBehaviorError,
    ModelRefusalError,
    OutputGuardrailTripwireTriggered,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)

from agentrl.errors import AgentError, PolicyError

__all__ = ["outcome_of"]

_MISTAKES = (
    MaxTurnsExceeded,
    ModelBehaviorError,
    ModelRefusalError,
    OutputGuardrailTripwireTriggered,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)


def outcome_of(error: AgentsException) -> Exception:
    """What an episode that ended in ``error`` raises.

    A ``PolicyError`` with the policy's last words where it is the policy's mistake; ``AgentError`` where a guardrail
    turned the task away, before the policy had any part in it; else ``error`` itself.
    """
    if isinstance(error, _MISTAKES):
        return PolicyError(str(error) or type(error).__name__, answer=_last_words(error))
    if isinstance(error, InputGuardrailTripwireTriggered):
        return AgentError(
            f"the input guardrail {error.guardrail_result.guardrail.get_name()!r} turned the task away",
            fix="leave such tasks out of the task set, or the guardrail out of the agent",
        )
    return error


def _last_words(error: AgentsException) -> str:
    """The last text that the policy wrote in the run; empty where it never wrote any."""
    if error.run_data is None:
        return ""
    messages = [item for item in error.run_data.new_items if isinstance(item, MessageOutputItem)]
    texts = [ItemHelpers.text_message_output(item) for item in messages]
    return next((text for text in reversed(texts) if text), "")
