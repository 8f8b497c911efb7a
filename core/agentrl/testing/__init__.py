"""Conformance suites that plugin authors subclass, and a backend that plays given completions.

A test module that opts in has the suites and two fixtures, ``scripted`` and ``tiny_model``::

    pytest_plugins = ["agentrl.testing"]

Nothing is registered with pytest for those who do not. (PYTEST_DONT_REWRITE: what fails says why in words.)
"""

from agentrl.testing.agents import AgentConformance
from agentrl.testing.backends import BackendConformance
from agentrl.testing.fixtures import scripted, tiny_model
from agentrl.testing.rewards import RewardConformance
from agentrl.testing.scripted import Hangs, ScriptedBackend, Truncated
from agentrl.testing.task_sets import TaskSetConformance

__all__ = [
    "AgentConformance",
    "BackendConformance",
    "Hangs",
    "RewardConformance",
    "ScriptedBackend",
    "TaskSetConformance",
    "Truncated",
    "scripted",
    "tiny_model",
]
