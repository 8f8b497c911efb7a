"""The agent ``plugin-name`` does what agentrl asks of every agent."""

from agentrl.testing import AgentConformance

pytest_plugins = ["agentrl.testing"]


class TestPluginName(AgentConformance):
    agent = "plugin-name"
