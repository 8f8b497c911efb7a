"""The backend ``plugin-name`` does what agentrl asks of every backend."""

from agentrl.testing import BackendConformance

pytest_plugins = ["agentrl.testing"]


class TestPluginName(BackendConformance):
    backend = "plugin-name"
