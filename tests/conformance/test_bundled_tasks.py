"""The bundled task sets hold to the contract of task sets."""

from agentrl.testing import TaskSetConformance

pytest_plugins = ["agentrl.testing"]


class TestArithmetic(TaskSetConformance):
    tasks = "arithmetic"
