"""The bundled agents hold to the contract of agents."""

from agentrl.testing import AgentConformance

pytest_plugins = ["agentrl.testing"]


class TestMath(AgentConformance):
    agent = "math"


class TestMultiTurnMath(AgentConformance):
    agent = "multi_turn_math"
    append_only = True


class TestCalculator(AgentConformance):
    agent = "calculator"
    append_only = True
