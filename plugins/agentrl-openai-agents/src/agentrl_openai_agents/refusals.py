"""Parts of an agent that exist in the Responses API alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agents import Agent, FunctionTool

from agentrl.errors import ConfigError

__all__ = ["refuse_hosted"]


def refuse_hosted(agent: Agent[Any]) -> None:
    """Raise ``ConfigError`` for what OpenAI would run or keep for ``agent`` or for one that it hands off to."""
    for each in _with_handoffs(agent, []):
        for tool in each.tools:
            if not isinstance(tool, FunctionTool):
                raise ConfigError(
                    f"agent {each.name!r} has the tool {tool.name!r} ({type(tool).__name__}), "
                    "which chat completions do not have",
                    fix="give it a function tool that does the same",
                )
        if each.prompt is not None:
            raise ConfigError(
                f"the instructions of agent {each.name!r} are a prompt kept at OpenAI",
                fix="give it their text as `instructions`",
            )


def _with_handoffs(agent: Agent[Any], seen: list[Agent[Any]]) -> Iterator[Agent[Any]]:
    """``agent`` and whom it can hand off to, as far as that can be seen before a run."""
    if any(agent is other for other in seen):
        return
    seen.append(agent)
    yield agent
    for target in agent.handoffs:
        if isinstance(target, Agent):
            yield from _with_handoffs(target, seen)
