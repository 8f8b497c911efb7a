"""The torch engine holds to the contract of backends."""

from agentrl.testing import BackendConformance

pytest_plugins = ["agentrl.testing"]


class TestTorch(BackendConformance):
    backend = "torch"
