"""The conformance suite of agents."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import pytest

from agentrl.agents.binding import reference_of
from agentrl.config.models import Config
from agentrl.errors import BackendError, ConfigError, PromptTooLong, UnsupportedSampling
from agentrl.gateway.contract import Call
from agentrl.plugins import Plugins
from agentrl.tasks import Task, TaskSet, load_tasks
from agentrl.testing.episodes import EpisodePlayer, Played
from agentrl.testing.mistakes import MISTAKES, Tool
from agentrl.testing.parts import MISSING, PartName, as_part, failing_tests, required
from agentrl.testing.scripted import Script, ScriptedCompletion
from agentrl.worker.protocol import unfit

__all__ = ["AgentConformance"]

_AGAIN = 10
"""How many requests an agent may make after one that is refused for good."""

Mode = Literal["auto", "inline", "subproc"]


class AgentConformance:
    """Tests of one agent. Subclass it with a name that begins with ``Test``, and set ``agent``.

    Its episodes run as in training, on the real gateway, with the tokenizer and template of the model ``tiny``;
    what the policy writes comes from a script.
    """

    agent: ClassVar[Any] = MISSING
    """A registered name or a reference, or the agent itself: a class, an instance, a function, or an object of a
    framework whose plugin is installed."""
    kwargs: ClassVar[Mapping[str, Any]] = {}
    """As ``agent.kwargs`` in a config."""
    python: ClassVar[str | None] = None
    """As ``agent.python``."""
    env: ClassVar[Sequence[str]] = ()
    """As ``agent.env``."""
    mode: ClassVar[Mode] = "auto"
    """As ``rollout.mode``: ``subproc`` for an agent that is not async, or reads its endpoint from the environment."""
    override: ClassVar[Mapping[str, Any]] = {}
    """As ``rollout.override``, for an agent that sets fields which cannot be trained."""
    tasks: ClassVar[PartName] = "arithmetic"
    """The task set that it works on; the first two tasks are used."""
    reward: ClassVar[PartName | None] = None
    """The reward that scores its answer; ``None`` where it returns its own."""
    completions: ClassVar[Sequence[ScriptedCompletion]] = ("It is 42.",)
    """What the policy writes in an episode that ends well; the last is repeated for ever."""
    tools: ClassVar[Sequence[str]] = ()
    """Names of its tools, where its first episode does not offer them to the model."""
    append_only: ClassVar[bool] = False
    """Whether it claims that each call continues the messages of the one before, so that the token tree never forks."""
    timeout: ClassVar[float] = 10.0
    """Seconds that an episode may take."""
    most_calls: ClassVar[int] = 50
    """The most calls that an episode may make, however the policy answers."""

    @classmethod
    def config(cls, *, mode: Mode | None = None, kwargs: Mapping[str, Any] | None = None) -> Config:
        """Returns the configuration of a run of this agent."""
        agent = required(cls, "agent")
        return Config.model_validate(
            {
                "agent": {
                    "name": agent if isinstance(agent, str) else reference_of(agent),
                    "kwargs": dict(cls.kwargs if kwargs is None else kwargs),
                    "python": cls.python,
                    "env": list(cls.env),
                },
                "reward": cls.reward,
                "rollout": {
                    "mode": mode or cls.mode,
                    "episode_timeout": cls.timeout,
                    "override": dict(cls.override),
                    "max_workers": 1,
                    "concurrency": 2,
                },
            }
        )

    @classmethod
    def player_of(cls, *, mode: Mode | None = None, kwargs: Mapping[str, Any] | None = None) -> EpisodePlayer:
        """Returns a player of the agent, not started. Raises as ``EpisodePlayer`` does."""
        agent = required(cls, "agent")
        return EpisodePlayer(cls.config(mode=mode, kwargs=kwargs), None if isinstance(agent, str) else agent)

    @pytest.fixture(scope="class")
    @classmethod
    def player(cls) -> Iterator[EpisodePlayer]:
        """Runs episodes of the agent."""
        with failing_tests():
            player = cls.player_of()
        with player:
            yield player

    @pytest.fixture(scope="class")
    @classmethod
    def two_tasks(cls) -> list[Task]:
        """Two tasks of the set, or the only one twice."""
        with failing_tests():
            tasks: TaskSet = load_tasks(Plugins(), as_part(cls.tasks))
        return [copy.deepcopy(tasks[index % len(tasks)]) for index in range(2)]

    @pytest.fixture
    def task(self, two_tasks: list[Task]) -> Task:
        """The first of ``two_tasks``."""
        return copy.deepcopy(two_tasks[0])

    @pytest.fixture(scope="class")
    @classmethod
    def tool(cls, player: EpisodePlayer, two_tasks: list[Task]) -> Tool:
        """The agent's tool with the most arguments; a made-up one where it has none."""
        if cls.tools:
            return Tool(cls.tools[0])
        (played,) = player.play(cls.completions, two_tasks[0])
        offered = [tool for call in played.episode.calls for tool in call.request.get("tools") or ()]
        tools = [tool for tool in map(_tool, offered) if tool is not None]
        return max(tools, key=lambda tool: len(tool.arguments()), default=Tool("calculator"))

    def test_it_is_found_and_takes_its_kwargs(self, player: EpisodePlayer) -> None:
        assert player.agent

    def test_a_kwarg_that_it_does_not_take_is_refused(self) -> None:
        refusal: ConfigError | None = None
        try:
            self.player_of(kwargs={**self.kwargs, "no_such_kwarg": 1})
        except ConfigError as error:
            refusal = error
        if refusal is None:
            pytest.skip("it takes any keyword, so that a misspelt one cannot be told")
        assert "no_such_kwarg" in refusal.message, f"the refusal does not name the key: {refusal}"
        assert refusal.fix, f"the refusal does not say what would be taken: {refusal}"

    def test_it_calls_the_model_and_every_call_is_captured(self, player: EpisodePlayer, task: Task) -> None:
        (played,) = player.play(self.completions, task)
        _ended(played)
        calls = len(played.episode.calls)
        assert calls, "the episode ended without a call of the model that its session has captured"
        answered = len(player.backend.requests) - player.backend.cancelled
        assert calls == answered, f"of {answered} calls that the model answered, the session has captured {calls}"

    def test_an_episode_ends_in_a_reward_or_a_rejection(self, player: EpisodePlayer, two_tasks: list[Task]) -> None:
        for played in player.play(self.completions, *two_tasks):
            _ended(played)

    def test_json_can_carry_what_it_returns(self, player: EpisodePlayer, task: Task) -> None:
        (played,) = player.play(self.completions, task)
        _ended(played)
        fault = unfit(played.returned, "what run() returned")
        assert fault is None, f"JSON cannot carry {fault}: it could not run in a worker process"

    def test_an_episode_leaves_nothing_behind_for_the_next(self, player: EpisodePlayer, task: Task, tool: Tool) -> None:
        before = copy.deepcopy(task)
        first, second = (_shape(player.play(self._conversation(tool), task)[0]) for _ in range(2))
        assert task == before, "it changed the task of others: its copy is not its own"
        assert first == second, f"the same task with the same completions came to {first}, and then to {second}"

    def test_episodes_at_once_do_not_mix(self, player: EpisodePlayer, two_tasks: list[Task], tool: Tool) -> None:
        script = self._conversation(tool)
        alone, again = ([player.play(script, task)[0] for task in two_tasks] for _ in range(2))
        together = player.play(script, *two_tasks, gather=not player.config.runs_in_workers)
        if player.backend.alone:
            said = " ".join(player.warnings) or "it may block the event loop"
            pytest.fail(f"while one episode waits for the model, no other goes on: {said}", pytrace=False)
        repeats = [_shape_and_texts(each) for each in alone] == [_shape_and_texts(each) for each in again]
        seen = _shape_and_texts if repeats else _shape  # Texts may hold a time, or an id.
        for beside, by_itself in zip(together, alone, strict=True):
            assert seen(beside) == seen(by_itself), "beside another episode it went otherwise than by itself"

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_a_mistake_of_the_policy_is_an_outcome(
        self, mistake: str, player: EpisodePlayer, task: Task, tool: Tool
    ) -> None:
        (played,) = player.play([MISTAKES[mistake](tool), *self.completions], task)
        _ended(played)

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_a_mistake_that_is_made_for_ever_is_an_outcome(
        self, mistake: str, player: EpisodePlayer, task: Task, tool: Tool
    ) -> None:
        over = UnsupportedSampling("the test ends an episode that makes too many calls")
        (played,) = player.play([MISTAKES[mistake](tool)] * self.most_calls + [over], task)
        if played.asked > self.most_calls:
            pytest.fail(f"it made {self.most_calls} calls and would have gone on: limit its turns", pytrace=False)
        _ended(played)

    def test_a_request_that_is_refused_for_good_fails_the_episode(self, player: EpisodePlayer, task: Task) -> None:
        (played,) = player.play([UnsupportedSampling("refused by the test")], task)
        _failed(played, "gateway", "its call was refused with status 400")
        assert played.asked <= _AGAIN, f"it asked {played.asked} times for what was refused for good"

    def test_a_prompt_that_outgrows_the_context_is_an_outcome(self, player: EpisodePlayer, task: Task) -> None:
        (played,) = player.play([PromptTooLong("refused by the test")], task)
        _ended(played)
        assert played.asked <= _AGAIN, f"it asked {played.asked} times for what was refused for good"

    def test_a_backend_that_fails_fails_the_episode(self, player: EpisodePlayer, task: Task) -> None:
        (played,) = player.play([BackendError("broken by the test")], task)
        _failed(played, "backend", "the backend broke")

    def test_the_client_that_all_share_is_as_it_was(self, player: EpisodePlayer, task: Task) -> None:
        player.play(self.completions, task)
        changed = player.changes_of_the_client()
        assert not changed, f"it changed the HTTP client that all episodes share: {changed}"
        assert player.ask_beside("Hello") == "Hello", "after it, the HTTP client that all share does not work"

    @pytest.mark.parametrize("credential", ["base_url", "api_key"])
    def test_either_credential_is_enough(self, credential: str, player: EpisodePlayer, task: Task) -> None:
        needed = {"base_url", "api_key"} | ({"http_client"} if credential == "api_key" else set())
        if not player.takes(needed):
            pytest.skip(f"its run() does not take all of {', '.join(sorted(needed))}, or not in this process")
        other = {"base_url": "http://elsewhere.invalid/v1"} if credential == "api_key" else {"api_key": "sk-other"}
        (played,) = player.play(self.completions, task, connection=other)
        _ended(played)
        assert played.episode.calls, f"with the session's {credential} alone, none of its calls was captured"

    def test_its_history_is_append_only(self, player: EpisodePlayer, task: Task, tool: Tool) -> None:
        (played,) = player.play(self._conversation(tool), task)
        calls = played.episode.calls
        forks = [call.fork_reason for call in calls if call.fork_reason]
        if forks and self.append_only:
            pytest.fail(f"{len(forks)} of {len(calls)} calls fork the token tree: {forks[0]}", pytrace=False)
        elif forks:
            pytest.skip(f"{len(forks)} of {len(calls)} calls fork the token tree, which costs tokens: {forks[0]}")

    def test_it_runs_in_a_worker_process_as_well(
        self, player: EpisodePlayer, two_tasks: list[Task], tool: Tool
    ) -> None:
        if player.config.runs_in_workers:
            pytest.skip("all of these tests run it in worker processes")
        if not isinstance(self.agent, str):
            pytest.skip("another process finds an agent by a name or a reference only")
        script = self._conversation(tool)
        inline = [_shape(played) for played in player.play(script, *two_tasks)]
        with self.player_of(mode="subproc") as workers:
            assert [_shape(played) for played in workers.play(script, *two_tasks)] == inline

    def _conversation(self, tool: Tool) -> Script:
        """A script with more than one turn for an agent that has tools."""
        return [MISTAKES["call"](tool), *self.completions]


def _ended(played: Played) -> None:
    """Fails the test where the episode failed on any side but the policy's."""
    failure = played.episode.failure
    if failure is not None:
        pytest.fail(f"the episode failed on the side of the {failure.side}: {failure.reason}", pytrace=False)


def _failed(played: Played, side: str, why: str) -> None:
    """Fails the test unless the episode failed on ``side``, because ``why``."""
    failure = played.episode.failure
    if failure is None:
        end = f"{played.episode.outcome} with {played.returned!r:.80}"
        pytest.fail(f"{why}, and the episode ended as if nothing were wrong: {end}", pytrace=False)
    if failure.side != side:
        pytest.fail(f"{why}, and it was put down to the {failure.side}: {failure.reason}", pytrace=False)


def _shape(played: Played) -> tuple[object, ...]:
    """An episode's result and the lengths of its conversations, without their texts."""
    episode = played.episode
    return episode.outcome, episode.reward, [len(_said(call)) for call in episode.calls]


def _shape_and_texts(played: Played) -> tuple[object, ...]:
    """An episode's result and its conversations."""
    episode = played.episode
    return episode.outcome, episode.reward, [_said(call) for call in episode.calls]


def _tool(offered: Mapping[str, Any]) -> Tool | None:
    """A tool as any of the protocols writes it; ``None`` for one whose arguments the request does not say."""
    function = offered.get("function", offered)
    schema = function.get("parameters", function.get("input_schema"))
    return Tool(function["name"], schema or {}) if "name" in function and (schema or "function" in offered) else None


def _said(call: Call) -> Any:
    """The conversation of a request, under the name that its protocol gives it."""
    return call.request.get("messages") or call.request.get("input") or ()
