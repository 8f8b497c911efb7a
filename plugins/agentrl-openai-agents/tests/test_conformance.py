"""The examples, and native agents, hold to what every agent has to."""

from __future__ import annotations

from pathlib import Path

from agentrl.testing import AgentConformance, tool_call

NATIVE = Path(__file__).with_name("native.py")


class TestCalculator(AgentConformance):
    agent = "openai-agents-calculator"
    append_only = True


class TestHandoff(AgentConformance):
    agent = "openai-agents-handoff"


class TestNativeAgentWithAnotherAsTool(AgentConformance):
    agent = f"{NATIVE}:asking"
    kwargs = {"max_turns": 4}  # noqa: RUF012
    reward = "numeric-match"
    completions = (tool_call("ask_adder", {"input": "1 + 2"}), "It is 3.")
