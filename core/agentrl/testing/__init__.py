"""Suites that plugin authors subclass to hold a part to its contract, and a backend that plays given completions.

A test module opts in, and has the fixtures ``play``, ``scripted`` and ``tiny_model``; nothing is registered with pytest
for those who do not::

    pytest_plugins = ["agentrl.testing"]

An agent: a registered name, a reference, or the object itself, a framework's native one included. Its episodes run
as in training, on the real gateway; what the policy writes comes from a script, most of it wrong::

    class TestMine(AgentConformance):
        agent = "my-agent"
        reward = "exact-match"  # where it returns an answer

A reward, with answers that it should tell apart::

    class TestMine(RewardConformance):
        reward = {"name": "my-reward", "tolerance": 0.1}
        right, wrong = (("42", {"answer": "42"}),), (("24", {"answer": "42"}),)

An inference backend, held against a plain forward of the same model, also while its weights change::

    class TestMine(BackendConformance):
        backend = "my-backend"
        options = {"dtype": "float32"}

A task set::

    class TestMine(TaskSetConformance):
        tasks = {"name": "my-tasks", "split": "test"}

A dialect, with requests that it should answer, and how a client reads the answers::

    class TestMine(DialectConformance):
        dialect = "my-protocol"
        asks = ({"prompt": "Hello."},)

What else a suite can be told is written at its class attributes. For tests of an author's own, ``play`` runs one
episode with given completions, and ``ScriptedBackend`` is a whole ``Backend``::

    def test_a_right_answer_is_rewarded(play):
        assert play("my-agent", {"question": "What is 40 + 2?", "answer": "42"}, "It is 42.").reward == 1

An engine's updates may go wrong in many ways, and a run stops within a step for each of ``UPDATE_FAULTS``. To see that
yours lets it, wrap it in one: ``FaultyBackend(MyBackend(context), fault, context.model_folder)``.

The suites need the extra ``agentrl-core[train]``, and pytest. (PYTEST_DONT_REWRITE: what fails says why in words.)
"""

from agentrl.testing.agents import AgentConformance
from agentrl.testing.backends import BackendConformance
from agentrl.testing.backends.faults import UPDATE_FAULTS, FaultyBackend, UpdateFault
from agentrl.testing.dialects import DialectConformance
from agentrl.testing.fixtures import play, scripted, tiny_model
from agentrl.testing.mistakes import MISTAKES, tool_call
from agentrl.testing.rewards import RewardConformance
from agentrl.testing.scripted import Hangs, ScriptedBackend, Truncated
from agentrl.testing.task_sets import TaskSetConformance

__all__ = [
    "MISTAKES",
    "UPDATE_FAULTS",
    "AgentConformance",
    "BackendConformance",
    "DialectConformance",
    "FaultyBackend",
    "Hangs",
    "RewardConformance",
    "ScriptedBackend",
    "TaskSetConformance",
    "Truncated",
    "UpdateFault",
    "play",
    "scripted",
    "tiny_model",
    "tool_call",
]
