"""The task set ``plugin-name`` does what agentrl asks of every task set."""

from agentrl.testing import TaskSetConformance

pytest_plugins = ["agentrl.testing"]


class TestPluginName(TaskSetConformance):
    tasks = "plugin-name"
