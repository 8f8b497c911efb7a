"""An agent written with Anthropic's SDK holds to the contract of agents, as those do that are written with OpenAI's."""

from tests.conformance.anthropic_agent import AnthropicCalculator

from agentrl.testing import AgentConformance

pytest_plugins = ["agentrl.testing"]


class TestAnthropicCalculator(AgentConformance):
    agent = AnthropicCalculator
    append_only = True
