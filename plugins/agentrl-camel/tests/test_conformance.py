"""The example agents, and native ones, hold to what every agent has to hold to."""

from __future__ import annotations

from natives import solver

from agentrl.testing import AgentConformance

pytest_plugins = ["agentrl.testing"]

CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "1+1"}}\n</tool_call>'


class TestCamelMath(AgentConformance):
    agent = "camel-math"
    completions = (CALL, "It is 2.")
    append_only = True


class TestCamelSociety(AgentConformance):
    agent = "camel-society"
    completions = ("Quickly: 2.", "Carefully: 2.")


class TestANativeAgent(AgentConformance):
    agent = solver()
    reward = "numeric-match"
    completions = (CALL, "It is 2.")
    append_only = True
