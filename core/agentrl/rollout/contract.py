"""The rollout's contract: the episodes and groups that leave it, and what runs an agent's code for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from agentrl.agents.contract import Data
from agentrl.errors import Side
from agentrl.gateway.contract import Call
from agentrl.tokens.contract import TokenTree

Phase = Literal["train", "eval", "eval-greedy"]
"""Episodes that train, and the two readings of an evaluation: sampled and greedy."""
Outcome = Literal["rewarded", "rejected", "failed"]


@dataclass(frozen=True, slots=True)
class Failure:
    """What broke around an episode, and on which side."""

    side: Side
    reason: str
    cause: str = field(default="", compare=False)
    """What failures of the same cause share, without the details of this one; empty where nobody told it."""
    traceback: str = field(default="", compare=False, repr=False)
    """Of the exception, from the agent's code on. Not stored with the episode."""
    transient: bool = field(default=False, compare=False)
    """Whether it may go better another time, so that the episode is run again. Not stored."""

    @property
    def kind(self) -> str:
        """Side and cause: failures of equal kinds are counted as one."""
        return f"{self.side}: {self.cause or self.reason}"

    def __str__(self) -> str:
        return f"{self.side}: {self.reason}"


@dataclass(frozen=True, slots=True)
class EpisodeKey:
    """Which episode of the run this is; equal keys sample equal tokens under equal weights."""

    phase: Phase
    step: int
    """Optimiser steps done when the episode was dispatched."""
    task: int
    """Index of the task in its set."""
    sample: int
    """Index in the group."""

    def __str__(self) -> str:
        return f"{self.phase}-{self.step}-{self.task}-{self.sample}"


@dataclass(frozen=True, slots=True)
class EpisodeView:
    """What a reward function may look at beside the answer and the task."""

    key: EpisodeKey
    calls: tuple[Call, ...]
    """Completed calls whose answers the agent has had, oldest first."""


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
    """What the reward says that it is made of, by name (``agentrl.Reward``); of rewarded calls the sums."""
    calls: tuple[Call, ...] = ()
    tree: TokenTree = field(default_factory=TokenTree)
    answer: Any = None
    """What ``run`` returned where a reward function scored it, as plain JSON."""
    failure: Failure | None = None
    mistake: str | None = None
    """What the policy did wrong where that ended the episode, as the agent said it; the outcome is a reward."""
    seconds: float = 0.0
    attempts: int = 1
    """How many times it was run; a failure of what surrounds the agent is tried again."""
    mistake_cause: str = field(default="", compare=False)
    """What mistakes of the same cause share, as in ``Failure``. Not stored."""
    setbacks: tuple[Failure, ...] = field(default=(), compare=False)
    """What failed on the way and was tried again: calls that the agent's client repeated, earlier attempts. Not
    stored."""


def delivered_calls(episode: Episode) -> tuple[Call, ...]:
    """The calls whose answers the agent has had, which are all that an episode can owe its reward to.

    Those are the delivered ones, and of the others those that a later call continues or that the agent rewards.
    """
    if all(call.delivered for call in episode.calls):
        return episode.calls
    known = {call.parent for call in episode.calls} | episode.call_rewards.keys()
    return tuple(call for call in episode.calls if call.delivered or call.id in known)


@dataclass(frozen=True, slots=True)
class Group:
    """The episodes of one task that are compared with each other."""

    task: int
    episodes: tuple[Episode, ...]


class Stage(NamedTuple):
    """Where an episode is."""

    words: str
    """After "it was"."""
    waited: float = 0.0
    """Seconds that it has waited for the model so far, all its calls together."""


class AgentRunner(Protocol):
    """Runs one episode's agent code under a deadline."""

    async def run(
        self,
        data: Data,
        connection: Mapping[str, Any],
        *,
        deadline_s: float,
        stage: Callable[[], Stage],
        alone: bool = False,
    ) -> Any:
        """Return what the agent returned.

        Whatever the agent raises passes through. Raises ``EpisodeTimeout`` after ``deadline_s`` seconds,
        which tells by ``stage()`` where it was and who took the time. Ends the agent's code before it returns.
        ``alone`` keeps the agent apart from others, so that it can neither harm them nor be harmed by them;
        without it ``WorkerError`` may be raised for an episode whose process another one has brought down.
        """
        ...
