"""The rollout's contract: the episodes and groups that leave it, and what an executor of agents' code is.

An executor is what ``rollout.mode`` names, an entry point of the group ``agentrl.executors``: a callable that takes
``agent``, an ``AgentSpec``, and the keys beside its name in the config, and returns an ``Executor``. To write one, keep
three promises: ``inspect`` finds the agent where its code is going to run and says what is known of it; ``running``
yields an ``AgentRunner`` for any number of episodes at once; and when that context is left, nothing of the agent is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Set
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

from agentrl.agents.contract import Data, LoadedAgent
from agentrl.errors import Limit, Side
from agentrl.gateway.contract import Call
from agentrl.hosting.contract import Hosts
from agentrl.tokens.contract import TokenTree

__all__ = [
    "LIMIT_NAMES",
    "Activity",
    "AgentFacts",
    "AgentRunner",
    "AgentSpec",
    "Episode",
    "EpisodeKey",
    "EpisodeView",
    "Executor",
    "ExecutorContext",
    "Failure",
    "Fate",
    "Group",
    "Outcome",
    "Phase",
    "ProcessEndpoint",
    "delivered_calls",
]

Phase = Literal["train", "eval", "eval-greedy"]
"""Episodes that train, and the two readings of an evaluation: sampled and greedy."""
Outcome = Literal["rewarded", "rejected", "failed"]
Fate = Literal[
    "trained",
    "without_difference",
    "filtered",
    "rejected",
    "failed",
    "stale",
    "over_long",
    "constrained",
    "without_tokens",
    "unfinished",
]
"""What became of an episode that was started for training; each has exactly one.

``trained``: at least one of its tokens is in the loss, with an advantage that is not 0. ``without_difference``: all its
advantages are 0, or its group was left out since none of its episodes was better than another. ``filtered``: a filter
of the algorithm left it out, or its group, though there was something to learn from it. ``rejected`` and
``failed``: its outcome. ``stale``: its group, or every token of it that could have been trained, was older than
``rollout.max_staleness`` allows. ``over_long``: it does not fit a pass of the learner. ``constrained``: grammars or
greedy sampling chose every token of it. ``without_tokens``: its reward reaches no sampled token, such as where the
first prompt was too long for the context. ``unfinished``: it was in no step when the run ended.
"""


LIMIT_NAMES: Final[Mapping[Limit, str]] = {
    "context": "context overflow",
    "turns": "turn limit",
    "tokens": "token limit",
    "pass": "longer than a pass",
}
"""What the ``mistake`` of an episode begins with, before a colon, where the policy ran into a limit."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What broke around an episode, and on which side."""

    side: Side
    reason: str
    fingerprint: str = field(default="", compare=False)
    """A text that failures of the same origin share, without the details of this one; may be empty."""
    traceback: str = field(default="", compare=False, repr=False)
    """Of the exception, from the agent's code on. Not stored with the episode."""
    transient: bool = field(default=False, compare=False)
    """Whether another attempt may succeed, so that the episode is run again. Not stored."""

    @property
    def kind(self) -> str:
        """Side and fingerprint: failures of equal kinds are counted together."""
        return f"{self.side}: {self.fingerprint or self.reason}"

    def __str__(self) -> str:
        return f"{self.side}: {self.reason}"


@dataclass(frozen=True, slots=True)
class EpisodeKey:
    """Which episode of the run this is; written as ``phase-group-task-sample``, such as ``train-12-3-0``."""

    phase: Phase
    group: int
    """The group's ordinal in its phase. For training it is the position in the task order; for an evaluation, the
    policy version times the number of held-out tasks, plus the task's index."""
    task: int
    """Index of the task in its set."""
    sample: int
    """Index in the group; it goes on where a step trains the same task again, and where a group that was dropped comes
    again."""

    def __str__(self) -> str:
        return f"{self.phase}-{self.group}-{self.task}-{self.sample}"


@dataclass(frozen=True, slots=True)
class EpisodeView:
    """What a reward function may look at beside the answer and the task."""

    key: EpisodeKey
    calls: tuple[Call, ...]
    """Completed calls whose answers the agent received, oldest first."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One run of an agent on a task, ended."""

    key: EpisodeKey
    data: Mapping[str, Any]
    outcome: Outcome
    reward: float | None
    """The episode's reward; where single calls were rewarded, the sum of theirs. ``None`` unless rewarded."""
    call_rewards: Mapping[str, float] = field(default_factory=dict)
    """Rewards by response id; empty where the episode has one reward for all."""
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    """The named parts of the reward (``agentrl.Reward``); where single calls were rewarded, the sums of theirs."""
    calls: tuple[Call, ...] = ()
    tree: TokenTree = field(default_factory=TokenTree)
    answer: Any = None
    """What ``run`` returned where a reward function scored it, as plain JSON."""
    failure: Failure | None = None
    mistake: str | None = None
    """What the policy did wrong where that ended the episode, in the agent's words. The outcome is a reward, or a
    rejection where the policy ran into a limit and ``rollout.on_overflow`` says so."""
    seconds: float = 0.0
    """Wall-clock time of the last attempt, its reward included."""
    attempts: int = 1
    """How many times it was run; a failure of what surrounds the agent is tried again."""
    version: int = 0
    """The policy version when the episode was dispatched; every sampled token carries its own."""
    agent: str = field(default="", compare=False)
    """The agent that ran it, as the config names it; empty where that is not known. Not stored: a run has one."""
    trained_step: int | None = None
    """The optimiser step whose batch its group was in; ``None`` where it has not been in one, or not yet."""
    mistake_fingerprint: str = field(default="", compare=False)
    """A text that mistakes of the same origin share, as in ``Failure``."""
    setbacks: tuple[Failure, ...] = field(default=(), compare=False)
    """What failed on the way and was tried again: calls that the agent's client repeated, earlier attempts."""
    started: float | None = field(default=None, compare=False)
    """When the last attempt began, in seconds since the epoch; ``None`` where that is not recorded."""

    @property
    def limit(self) -> Limit | None:
        """The limit that the policy ran into, as its ``mistake`` says; ``None`` where that was something else."""
        name = "" if self.mistake is None else self.mistake.partition(": ")[0]
        return next((limit for limit, known in LIMIT_NAMES.items() if known == name), None)

    @property
    def fate(self) -> Fate | None:
        """What becomes of it in training whatever its group does; ``None`` where that depends on its group."""
        if self.limit == "pass":
            return "over_long"
        return None if self.outcome == "rewarded" else self.outcome


def delivered_calls(episode: Episode) -> tuple[Call, ...]:
    """The calls whose answers the agent received; an episode can owe its reward to no others.

    A call that was not delivered as far as the gateway knows counts as well where a later call continues it, or where
    the agent rewards it.
    """
    if all(call.delivered for call in episode.calls):
        return episode.calls
    known = {call.parent for call in episode.calls} | episode.call_rewards.keys()
    return tuple(call for call in episode.calls if call.delivered or call.id in known)


@dataclass(frozen=True, slots=True)
class Group:
    """The episodes of one task that are compared with each other, failed ones included.

    Raises ``ValueError`` for episodes of different tasks, agents or phases: a comparison of these tells nothing about
    the policy.
    """

    task: int
    """Index of the task in its set."""
    episodes: tuple[Episode, ...]

    def __post_init__(self) -> None:
        for episode in self.episodes:
            if episode.key.task != self.task:
                raise ValueError(
                    f"episode {episode.key} of task {episode.key.task} cannot be in a group of task {self.task}: only "
                    "episodes of one task are compared with each other"
                )
        _check_alike("agents", {episode.agent for episode in self.episodes} - {""})
        _check_alike("phases", {episode.key.phase for episode in self.episodes})

    @property
    def ordinal(self) -> int:
        """The number that the keys of its episodes carry as ``group``."""
        return self.episodes[0].key.group

    @property
    def oldest_version(self) -> int | None:
        """The policy version of its oldest sampled token; ``None`` where none was sampled."""
        spans = (span.sampled for episode in self.episodes for span in episode.tree.spans)
        return min((min(sampled.versions) for sampled in spans if sampled is not None), default=None)


def _check_alike(what: str, values: Set[str]) -> None:
    if len(values) > 1:
        named = " and ".join(map(repr, sorted(values)))
        raise ValueError(f"a group holds episodes of the {what} {named}: make a group of each")


class Activity(NamedTuple):
    """What an episode is doing."""

    words: str
    """Completes the sentence "it was …"."""
    waited: float = 0.0
    """Seconds that it has waited for the model so far, all its calls together."""


class AgentRunner(Protocol):
    """Runs the agent's code of one episode under a deadline."""

    async def run(
        self,
        data: Data,
        connection: Mapping[str, Any],
        *,
        deadline_s: float,
        activity: Callable[[], Activity],
        alone: bool = False,
    ) -> Any:
        """Return what the agent returned.

        ``connection`` holds ``base_url``, ``api_key``, ``http_client`` and ``model`` of the episode's session.
        Whatever the agent raises passes through. Raises ``EpisodeTimeout`` after ``deadline_s`` seconds, which says
        with ``activity()`` where the episode was and who took the time. The agent's code has ended when this returns
        or raises, also when it is cancelled. ``alone`` keeps the agent apart from others, so that it can neither harm
        them nor be harmed by them; without it ``WorkerError`` may be raised for an episode whose process another one
        has brought down.
        """
        ...


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """Which agent an executor is to run, as the config names it or the caller has passed it."""

    name: str
    """What messages call it."""
    reference: str | None
    """A registered name, ``dist/name``, ``pkg.mod:Obj`` or ``file.py:Obj``, by which any process finds the agent;
    ``None`` for an object that was passed and that no other process can find."""
    load: Callable[[], LoadedAgent]
    """Imports the agent in this process and binds it to ``kwargs``. Raises ``ConfigError`` or ``PluginError``."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """``agent.kwargs`` of the config."""
    python: Path | None = None
    """``agent.python``: the interpreter that runs the agent; ``None`` for this one."""
    env: tuple[str, ...] = ()
    """``agent.env``: ``NAME`` or ``NAME=value`` of variables that the agent's processes get."""
    outcomes: tuple[str, ...] = ()
    """``agent.outcomes``: references to exceptions of its framework that mean a mistake of the policy."""
    disabled: tuple[str, ...] = ()
    """Names of plugins that are not used."""


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What is known of an agent once it was imported where it runs."""

    is_async: bool
    """Whether one process can run several episodes at once, and end one of them alone."""
    returns_answer: bool
    """Whether what it returns is never a reward, so that the config must name a reward function."""


class ProcessEndpoint(Protocol):
    """An endpoint for one process that runs agents: it stays the same while the episodes behind it change.

    Its calls belong to the one episode that is attached; with none or several attached they are refused.
    """

    @property
    def base_url(self) -> str:
        """For a client that is made before any episode, such as when the agent's module is imported."""
        ...

    @property
    def api_key(self) -> str: ...

    def attach(self, session_api_key: str, /) -> None:
        """The process begins the episode whose session has this key."""
        ...

    def detach(self, session_api_key: str, /) -> None:
        """The process has ended that episode. Safe to call twice."""
        ...

    def close(self) -> None:
        """Calls are refused from now on. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class ExecutorContext:
    """What an executor is given while a run runs."""

    concurrency: int
    """Most episodes that are run at once; twice as many where an evaluation runs beside training."""
    max_workers: int | None
    """``rollout.max_workers``; ``None`` leaves it to the executor."""
    episodes_per_worker: int | None
    """``rollout.episodes_per_worker``; ``None`` leaves it to the executor."""
    logs: Path | None
    """The folder for what the agent prints where it has processes of its own; ``None`` keeps nothing of it."""
    open_worker_endpoint: Callable[[], ProcessEndpoint]
    """Opens an endpoint for a process that runs agents; whoever opens it closes it."""
    warn: Callable[[str], None]
    """Shows the user a warning; may be called from any thread."""
    hosts: Hosts | None = None
    """Starts processes where the scheduler places them, which may be on other machines; ``None`` where there is no
    scheduler, as in an evaluation of an agent alone."""


class Executor(Protocol):
    """Runs the code of one agent, in this process or elsewhere."""

    @property
    def runs_on_event_loop(self) -> bool:
        """Whether the agent's code runs on the rollout's event loop, so that an agent that blocks it is named."""
        ...

    def inspect(self) -> AgentFacts | Awaitable[AgentFacts]:
        """Find the agent where its code is going to run.

        Raises ``ConfigError`` or ``PluginError`` where there is none, it does not load, or it cannot be run there.
        """
        ...

    def running(self, context: ExecutorContext) -> AbstractAsyncContextManager[AgentRunner]:
        """Get ready to run episodes, and yield what runs them; on leaving, nothing of the agent is left."""
        ...
