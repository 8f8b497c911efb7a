"""What every agent has to hold to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import pytest

from agentrl.agents.binding import BoundAgent, bind_agent
from agentrl.errors import BackendError, ConfigError, UnsupportedSampling
from agentrl.plugins import Plugins
from agentrl.rewards import call_reward, load_reward
from agentrl.rollout.inline import InlineRunner
from agentrl.tasks import TaskSet, load_tasks
from agentrl.testing.mistakes import MISTAKES, Tool
from agentrl.testing.parts import MISSING, PartName, as_part, given
from agentrl.testing.scripted import Completion, Script
from agentrl.testing.stage import Played, Stage
from agentrl.worker.protocol import unfit

__all__ = ["AgentConformance"]

_REFUSED_CALLS = 10
"""How often an agent may ask again for what was refused for good."""


class AgentConformance:
    """Tests of one agent. Subclass it with a name that begins with ``Test``, and set ``agent``."""

    agent: ClassVar[Any] = MISSING
    """A registered name or a reference, or the agent itself: a class, an instance, a function, or an object of a
    framework whose plugin is installed."""
    kwargs: ClassVar[Mapping[str, Any]] = {}
    """As ``agent.kwargs`` in a config."""
    tasks: ClassVar[PartName] = "arithmetic"
    """The task set that it works on, of which two tasks are used."""
    reward: ClassVar[PartName | None] = None
    """The reward that scores its answer; ``None`` where it returns its own."""
    completions: ClassVar[Sequence[Completion]] = ("It is 42.",)
    """What the policy writes in an episode that ends well; the last again for ever."""
    tools: ClassVar[Sequence[str]] = ()
    """Names of its tools, where its first request does not offer them."""
    override: ClassVar[Mapping[str, Any]] = {}
    """As ``rollout.override`` in a config, where it sets fields that cannot be trained."""
    append_only: ClassVar[bool] = False
    """Whether it claims that each call continues the last one's messages, so that the token tree never forks."""
    timeout: ClassVar[float] = 10.0
    """Seconds that an episode may take."""
    most_calls: ClassVar[int] = 50
    """How many calls an episode may make however the policy answers."""

    @pytest.fixture(scope="class")
    @classmethod
    def bind(cls) -> Callable[[Mapping[str, Any]], BoundAgent]:
        """Binds the agent to kwargs."""
        target = given(cls, "agent")
        plugins = Plugins()
        found = plugins.get("agents", target) if isinstance(target, str) else target
        name = target if isinstance(target, str) else cls.__name__
        return lambda kwargs: bind_agent(plugins.adapt_agent(found), kwargs, name=name)

    @pytest.fixture(scope="class")
    @classmethod
    def stage(cls, bind: Callable[[Mapping[str, Any]], BoundAgent]) -> Iterator[Stage]:
        """Runs episodes of the agent."""
        plugins = Plugins()
        score = None if cls.reward is None else partial(call_reward, load_reward(plugins, as_part(cls.reward)))
        stage = Stage(InlineRunner(bind(cls.kwargs)), score, cls.timeout, cls.override)
        yield stage
        stage.close()

    @pytest.fixture(scope="class")
    @classmethod
    def task_set(cls) -> TaskSet:
        """The tasks."""
        return load_tasks(Plugins(), as_part(cls.tasks))

    @pytest.fixture(scope="class")
    @classmethod
    def tool(cls, stage: Stage, task_set: TaskSet) -> Tool:
        """A tool of the agent; one of another name where it has none."""
        if cls.tools:
            return Tool(cls.tools[0])
        (played,) = stage.play(cls.completions, task_set[0])
        offered = [tool["function"] for call in played.episode.calls for tool in call.request.get("tools") or ()]
        return Tool(offered[0]["name"], offered[0].get("parameters") or {}) if offered else Tool("calculator")

    def test_its_name_means_an_agent_that_takes_its_kwargs(self, bind: Callable[..., BoundAgent]) -> None:
        bind(self.kwargs)

    def test_a_kwarg_that_it_does_not_take_is_refused(self, bind: Callable[..., BoundAgent]) -> None:
        with contextlib.suppress(ConfigError):
            bind({**self.kwargs, "no_such_kwarg": 1})
            pytest.skip("it takes any keyword, so that a misspelt one cannot be told")

    def test_it_calls_the_model_and_every_call_is_captured(self, stage: Stage, task_set: TaskSet) -> None:
        (played,) = stage.play(self.completions, task_set[0])
        _ended(played)
        assert played.episode.calls, "the episode made no call of the model that its session captured"
        answered = len(stage.backend.requests) - stage.backend.cancelled
        assert len(played.episode.calls) == answered

    def test_an_episode_ends_in_a_reward_or_a_rejection(self, stage: Stage, task_set: TaskSet) -> None:
        for played in stage.play(self.completions, *_two(task_set)):
            _ended(played)

    def test_json_can_carry_what_it_returns(self, stage: Stage, task_set: TaskSet) -> None:
        (played,) = stage.play(self.completions, task_set[0])
        _ended(played)
        fault = unfit(played.returned, "what run() returned")
        assert fault is None, f"JSON cannot carry {fault}: such an agent cannot run in a worker process"

    def test_an_episode_leaves_nothing_behind_for_the_next(self, stage: Stage, task_set: TaskSet, tool: Tool) -> None:
        script = self._conversation(tool)
        first, second = (stage.play(script, task_set[0])[0] for _ in range(2))
        assert _shape(first) == _shape(second), "the same task and completions, run again, came out differently"

    def test_episodes_at_once_do_not_mix(self, stage: Stage, task_set: TaskSet, tool: Tool) -> None:
        tasks = _two(task_set)
        script = self._conversation(tool)
        alone = [stage.play(script, task)[0] for task in tasks]
        together = stage.play(script, *tasks)
        assert [_shape(each) for each in together] == [_shape(each) for each in alone]

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_a_mistake_of_the_policy_is_an_outcome(
        self, mistake: str, stage: Stage, task_set: TaskSet, tool: Tool
    ) -> None:
        (played,) = stage.play([MISTAKES[mistake](tool), *self.completions], task_set[0])
        _ended(played)

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_a_policy_that_never_learns_better_is_an_outcome(
        self, mistake: str, stage: Stage, task_set: TaskSet, tool: Tool
    ) -> None:
        (played,) = stage.play(self._for_ever(MISTAKES[mistake](tool)), task_set[0])
        asked = played.asked
        assert asked <= self.most_calls, f"it asked {self.most_calls} times and would have gone on: limit its turns"
        _ended(played)

    def test_a_refused_request_ends_the_episode(self, stage: Stage, task_set: TaskSet) -> None:
        (played,) = stage.play([UnsupportedSampling("refused by the test")], task_set[0])
        failure = played.episode.failure
        assert failure is not None, f"its call was refused, and it ended as if nothing were wrong: {played.returned!r}"
        assert failure.side == "gateway", f"its call was refused by the gateway, and it failed as: {failure}"
        assert played.asked <= _REFUSED_CALLS, f"it asked {played.asked} times for what was refused for good"

    def test_a_backend_that_fails_is_named(self, stage: Stage, task_set: TaskSet) -> None:
        (played,) = stage.play([BackendError("broken by the test")], task_set[0])
        failure = played.episode.failure
        assert failure is not None, f"the backend failed, and it ended as if nothing were wrong: {played.returned!r}"
        assert failure.side == "backend", f"the backend failed, and it was put down to: {failure}"

    def test_its_history_is_append_only(self, stage: Stage, task_set: TaskSet, tool: Tool) -> None:
        (played,) = stage.play(self._conversation(tool), task_set[0])
        reasons = [call.fork_reason for call in played.episode.calls if call.fork_reason]
        if self.append_only:
            assert not reasons
        elif reasons:
            pytest.skip(f"{len(reasons)} of {len(played.episode.calls)} calls fork the token tree: {reasons[0]}")

    def _conversation(self, tool: Tool) -> Script:
        """More than one turn of an agent that has tools."""
        return [MISTAKES["call"](tool), *self.completions]

    def _for_ever(self, completion: Completion) -> Script:
        """``completion`` until the agent has asked too often."""
        over = UnsupportedSampling("the test ends an agent that asks too often")
        return [completion] * self.most_calls + [over]


def _two(task_set: TaskSet) -> list[dict[str, Any]]:
    return [task_set[index] for index in range(min(2, len(task_set)))]


def _ended(played: Played) -> None:
    """The outcome is one that a policy can have."""
    failure = played.episode.failure
    assert failure is None, f"the episode failed on the side of the {failure.side}: {failure.reason}"


def _shape(played: Played) -> tuple[object, ...]:
    """What an episode came to, as far as it repeats: texts may hold a time or an id."""
    episode = played.episode
    messages = [len(call.request["messages"]) for call in episode.calls]
    return episode.outcome, episode.reward, messages
