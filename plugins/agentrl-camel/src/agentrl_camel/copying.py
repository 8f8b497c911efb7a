"""Copies of a ``ChatAgent``, one for each episode.

``ChatAgent.clone`` is not used: it forgets the message window, ``mask_tool_output``, ``step_timeout`` and others,
writes the output language into the system message a second time, and shares the terminators, which count.
"""

from __future__ import annotations

import copy
from typing import Any

from camel.agents import ChatAgent
from camel.memories import ChatHistoryMemory
from camel.models import BaseModelBackend
from camel.toolkits import FunctionTool, RegisteredAgentToolkit

from agentrl import AgentError, ConfigError
from agentrl_camel.policy import Policy

__all__ = ["Copier", "checked_once"]


class Copier:
    """Makes copies of ``agent``, which itself is only read.

    A copy has its own tools where they belong to a toolkit that CAMEL can copy. It shares other tools, events and
    callbacks with the original.
    """

    def __init__(self, agent: ChatAgent) -> None:
        """Raises ``ConfigError`` for an agent of which no faithful copies can be made."""
        if type(agent) is not ChatAgent:
            raise _uncopyable(f"it is a {type(agent).__name__}")
        if type(agent.memory) is not ChatHistoryMemory:
            raise _uncopyable(f"its memory is a {type(agent.memory).__name__}")
        self._agent = agent
        self._window = agent.memory._window_size
        self._terminators = copy.deepcopy(agent.response_terminators)
        self._tools = [checked_once(tool) for tool in agent.tool_dict.values()]
        self._has_toolkits = any(map(_toolkit_is_copied, self._tools))

    def copy(self, policy: Policy, *, with_memory: bool | None = None) -> ChatAgent:
        """A new copy whose models are the policy.

        It begins with its system message or, where ``with_memory`` is true, with the conversation that the original
        holds. Raises ``AgentError`` where the original holds a conversation and ``with_memory`` is ``None``.
        """
        agent = self._agent
        tools, toolkits = agent._clone_tools() if self._has_toolkits else (self._tools, [])
        models: list[BaseModelBackend] = [policy.backend(each.model_config_dict) for each in agent.model_backend.models]
        copied = ChatAgent(
            system_message=agent._original_system_message,
            model=models,
            message_window_size=self._window,
            summarize_threshold=None,
            token_limit=agent.token_limit,
            output_language=agent.output_language,
            tools=list(tools),
            toolkits_to_register_agent=toolkits,
            external_tools=list(agent._external_tool_schemas.values()),
            response_terminators=copy.deepcopy(self._terminators),
            scheduling_strategy=agent.model_backend.scheduling_strategy.__name__,
            max_iteration=agent.max_iteration,
            stop_event=agent.stop_event,
            tool_execution_timeout=agent.tool_execution_timeout,
            mask_tool_output=agent.mask_tool_output,
            pause_event=agent.pause_event,
            prune_tool_calls_from_memory=agent.prune_tool_calls_from_memory,
            enable_snapshot_clean=agent._enable_snapshot_clean,
            step_timeout=agent.step_timeout,
            on_request_usage=agent.on_request_usage,
        )
        self._remember(copied, with_memory)
        return copied

    def _remember(self, copied: ChatAgent, with_memory: bool | None) -> None:
        records = [context.memory_record for context in self._agent.memory.retrieve()]
        if with_memory:
            copied.memory.clear()
            copied.memory.write_records(records)
        elif with_memory is None and len(records) > len(copied.memory.retrieve()):
            raise AgentError(
                f"the agent holds a conversation of {len(records)} messages",
                fix="set agent.kwargs.with_memory: true to begin every episode with it, or false to leave it out",
            )


def checked_once(tool: FunctionTool) -> FunctionTool:
    """A copy of ``tool`` whose schema is checked once, now; CAMEL would check it in every call of the model.

    Raises what CAMEL raises for a wrong schema.
    """
    schema: dict[str, Any] = tool.get_openai_tool_schema()
    checked = copy.copy(tool)
    checked.get_openai_tool_schema = lambda: schema  # type: ignore[method-assign]
    checked.get_function_name = lambda: schema["function"]["name"]  # type: ignore[method-assign]
    return checked


def _toolkit_is_copied(tool: FunctionTool) -> bool:
    """Whether the tool's toolkit can be copied. Raises ``ConfigError`` where it would have to be."""
    toolkit = getattr(tool.func, "__self__", None)
    if hasattr(toolkit, "clone_for_new_session"):
        return True
    if isinstance(toolkit, RegisteredAgentToolkit):
        raise _uncopyable(f"its tool {tool.get_function_name()!r} is of a {type(toolkit).__name__}, which holds it")
    return False


def _uncopyable(reason: str) -> ConfigError:
    return ConfigError(
        f"the agent cannot be copied for each episode: {reason}",
        fix="train a function that makes it, annotated `-> ChatAgent`",
    )
