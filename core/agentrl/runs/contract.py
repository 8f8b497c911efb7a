"""What a run is, what it came to and what a reader finds in it, as plain values that all rooms and plugins share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from agentrl.errors import Side
from agentrl.rollout.contract import EpisodeKey, Fate, Outcome, Phase

__all__ = [
    "Checkpoint",
    "CountKey",
    "EpisodeFilter",
    "EpisodeRow",
    "GroupRow",
    "Membership",
    "MetricsLine",
    "RunInfo",
    "RunState",
    "SortKey",
    "Summary",
    "TokenFate",
    "TrainedEpisode",
    "TrainedTokens",
]

RunState = Literal["running", "completed", "interrupted", "failed", "killed"]
"""``running`` while a process writes to the run folder; ``killed`` where none does and there is no summary."""

SortKey = Literal[
    "committed",
    "reward",
    "seconds",
    "tokens",
    "calls",
    "attempts",
    "group",
    "task",
    "sample",
    "step",
    "version",
    "phase",
    "outcome",
    "side",
    "fate",
    "advantage",
    "surprise",
    "started",
]
"""What episodes are sorted by; ``committed`` is the order in which they finished."""

CountKey = Literal["phase", "outcome", "side", "step", "fate", "tool", "task", "version"]
"""What episodes are counted by; ``side`` is the side of a failure, ``step`` the trained step, and ``tool`` a tool that
the policy called: an episode counts once for each of its tools."""

TokenFate = Literal["trained", "constrained", "stale", "unrewarded", "left_out"]
"""What became of a sampled token in the step that its episode's group was in.

``trained``: the loss has a term for it. ``constrained``: a grammar or greedy sampling chose it, so that its
log-probability is not the policy's. ``stale``: it was older than ``rollout.max_staleness`` allows. ``unrewarded``: no
reward reaches its call, or the call's answer was not delivered. ``left_out``: its episode or its group is not in the
batch, and the fate of the episode says why."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Which run it is and what it is going to do."""

    name: str
    folder: Path
    """The run folder; what a tracker keeps on this machine belongs in there."""
    agent: str
    model: str
    steps: int = 0
    """Optimiser steps that the run is configured to do."""
    episodes_per_step: int = 0
    """Episodes that a step rolls out: tasks per step times episodes per task."""
    tasks: str = ""
    """The training tasks, as the config names them; ``of sessions`` where people bring them."""
    held_out: str | None = None
    """The tasks of evaluations, as the config names them; ``None`` where nothing is evaluated."""
    reward: str | None = None
    """The reward function that scores the answers; ``None`` where the agent returns its own reward, and ``of sessions``
    where people reward."""
    kind: Literal["training", "imitation", "replay"] = "training"
    """``training`` samples episodes, ``imitation`` is `agentrl sft`, whose tasks are conversations, and ``replay``
    trains from the stored episodes of another run."""
    resumed_from: int | None = None
    """The step whose checkpoint the run goes on from, which is told of again from the next step on; ``None`` where it
    begins."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended. Every run that could start writes one, whatever stopped it."""

    outcome: str
    """``completed``, ``interrupted``, or ``failed: …`` with the reason."""
    steps: int = 0
    """Optimiser steps done."""
    episodes: int = 0
    """Finished episodes, those of evaluations included."""
    tokens: int = 0
    """Tokens sampled in them."""
    seconds: float = 0.0
    """Wall-clock time of the whole run."""
    reward_before: float | None = None
    """Mean sampled reward on held-out tasks before the first step; ``None`` where it was not measured."""
    reward_after: float | None = None
    """Mean sampled reward on held-out tasks under the last weights."""
    reward_before_greedy: float | None = None
    reward_after_greedy: float | None = None
    checkpoint: str | None = None
    """Folder of the last weights that were saved."""
    failed: int = 0
    """Episodes that failed because something around the policy broke; they trained nothing."""
    rejected: int = 0
    """Episodes that the agent rejected."""
    mistaken: int = 0
    """Episodes that ended with a mistake of the policy; they have a reward."""
    limited: int = 0
    """Episodes in which the policy ran into a limit, of the context, of turns, of tokens, or of a pass of the learner;
    ``rollout.on_overflow`` decided on their reward."""
    ledger: dict[str, Any] = field(default_factory=dict)
    """What became of the episodes that were started for training, as ``agentrl.runs.ledger.Ledger`` writes it: its
    counts sum to ``received``. Empty where nothing was trained."""
    retried: int = 0
    """Failed calls and failed attempts that were tried again."""
    truncated: int = 0
    """Completions that were cut at their limit of tokens."""
    undelivered: int = 0
    """Completions whose client had disconnected."""
    overridden: int = 0
    """Calls that ``rollout.override`` changed."""
    unmet: int = 0
    """Calls that asked for something which nothing here can grant, and were answered without it."""
    control_tokens: int = 0
    """Calls with texts of users, systems or tools that the model read as control tokens."""
    normalised: int = 0
    """Calls in whose texts of the system a rule of ``gateway.normalise`` replaced something."""
    signal: str | None = None
    """The signal that interrupted the run, such as ``SIGTERM``; ``None`` where none did."""
    reasons: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """For each of the counts above that is not 0, by its name, the commonest reasons: ``count``, ``reason`` and
    ``episode``, the key of the first episode."""
    loss_before: float | None = None
    """Mean held-out loss of a token before the first step, in nats; ``None`` where no conversations were imitated."""
    loss_after: float | None = None
    """The same under the last weights."""
    restarts: int = 0
    """How often the run went on by itself after it had lost one of its processes."""
    conversations: int = 0
    """Conversations that were imitated, each as often as it was; ``tokens`` are then those that were trained."""
    over_long: int = 0
    """Conversations that were left out because they are longer than ``training.tokens_per_batch``."""
    cost: dict[str, Any] = field(default_factory=dict)
    """What the run has cost, as ``agentrl.costs.cost.Cost`` writes it: seconds, and tokens by stage and role, and where
    there are prices the money. What the parts before it was resumed cost is part of it."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as in ``summary.json``."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}


class EpisodeFilter(TypedDict, total=False):
    """Which episodes to read: those that match every key that is given."""

    phase: Phase
    group: int
    """The group's ordinal in its phase."""
    task: int
    """Index of the task in its task set."""
    step: int
    """The optimiser step that trained the group; for evaluations the steps done before."""
    version: int
    """The policy version at dispatch."""
    outcome: Outcome
    side: Side
    """The side that a failure is attributed to."""
    fate: Fate
    """What became of the episode in its step; none before the step has ended, and in evaluations."""
    tool: str
    """The name of a tool that the policy called."""
    min_reward: float
    max_reward: float
    """Inclusive bounds; an episode without a reward matches neither."""
    text: str
    """Words that all have to occur in the episode's messages, in any order and case; ``"quoted words"`` have to
    follow each other, and ``begin*`` matches words that begin so. A text without a word is a ``ConfigError``."""


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """An episode as lists show it, without its task, messages and tokens."""

    id: int
    """1, 2, 3, … in the order in which the episodes were committed."""
    key: EpisodeKey
    version: int
    """Policy version at dispatch."""
    trained_step: int | None
    """Optimiser step that takes its group into its batch; ``None`` before it begins, and in evaluations."""
    outcome: Outcome
    reward: float | None
    seconds: float
    attempts: int
    call_count: int
    """Calls to the model."""
    sampled_tokens: int
    failure_side: Side | None
    failure_reason: str | None
    mistake: str | None
    """The policy's mistake that ended the episode, if one did."""
    fate: Fate | None = None
    """What became of it in its step; ``None`` before the step has ended, and in evaluations."""
    advantage: float | None = None
    """The mean advantage of its trained tokens; ``None`` where none is trained, or not yet."""
    surprise: float | None = None
    """How unlikely the policy found what it did: the mean over its sampled tokens of the log-probability below zero,
    in nats a token; ``None`` where none was sampled."""
    started: float | None = None
    """When its last attempt began, in seconds since the epoch; ``None`` where that is not recorded."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """The episodes of a task that are compared with each other, in the order of their samples."""

    phase: Phase
    ordinal: int
    task: int
    episodes: tuple[EpisodeRow, ...]

    @property
    def mean_reward(self) -> float | None:
        """Mean over the episodes that have a reward; ``None`` where none has one."""
        rewards = [episode.reward for episode in self.episodes if episode.reward is not None]
        return sum(rewards) / len(rewards) if rewards else None


@dataclass(frozen=True, slots=True)
class Membership:
    """What an optimiser step takes, which is on disk before the step begins: a resumed run repeats the step from it.

    Groups are named by their ordinals, each of which is the group's position in the task order.
    """

    step: int
    """Number of the step, from 1; its weights have this policy version."""
    trained: tuple[int, ...]
    """Groups whose episodes it trains."""
    left_out: tuple[int, ...] = ()
    """Groups that it consumes without training them, because the algorithm's filter leaves them out."""
    stale: tuple[int, ...] = ()
    """Groups that were dropped before it because tokens in them had become too old; their tasks come again."""


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """What an optimiser step made of the sampled tokens of one episode, a value for each token.

    The tokens are in the order in which ``TokenTree.spans`` holds the sampled spans. A value is NaN where there is
    none.
    """

    step: int
    """The optimiser step."""
    fates: tuple[TokenFate, ...]
    advantages: tuple[float, ...]
    """The advantage that the loss gave each token."""
    weights: tuple[float, ...]
    """The share of each token in the step's loss."""
    logprobs: tuple[float, ...]
    """The learner's log-probability of each token, in nats, under the weights before the step."""
    entropies: tuple[float, ...]
    """The entropy, in nats, of the distribution from which the learner's log-probability was taken."""
    importances: tuple[float, ...]
    """The weight with which the off-policy correction multiplied each token's term."""

    def __post_init__(self) -> None:
        for name in ("advantages", "weights", "logprobs", "entropies", "importances"):
            if len(getattr(self, name)) != len(self.fates):
                raise ValueError(f"{len(getattr(self, name))} {name} for {len(self.fates)} sampled tokens")


@dataclass(frozen=True, slots=True)
class TrainedEpisode:
    """What an optimiser step made of one episode of its groups, whether it is in the batch or not."""

    key: EpisodeKey
    fate: Fate
    tokens: TrainedTokens
    """A value for every sampled token of the episode's tree."""

    @property
    def advantage(self) -> float | None:
        """The mean advantage of the tokens that are trained; ``None`` where none is."""
        trained = [
            advantage
            for advantage, fate in zip(self.tokens.advantages, self.tokens.fates, strict=True)
            if fate == "trained"
        ]
        return sum(trained) / len(trained) if trained else None


@dataclass(frozen=True, slots=True)
class MetricsLine:
    """One line of ``metrics.jsonl``: an optimiser step, or an evaluation after ``step`` steps."""

    step: int
    time: float
    """When it was written, in seconds since the epoch."""
    metrics: dict[str, float | None]
    """Flat numbers by name; ``None`` where a number was not finite."""

    @property
    def is_evaluation(self) -> bool:
        """Whether it is an evaluation's line."""
        return "evaluation/reward" in self.metrics or "evaluation/loss" in self.metrics

    @property
    def score(self) -> float | None:
        """What an evaluation says of the weights, higher is better: its reward, or else its loss below zero."""
        if (reward := self.metrics.get("evaluation/reward")) is not None:
            return reward
        return None if (loss := self.metrics.get("evaluation/loss")) is None else -loss


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint of a run."""

    step: int
    """Optimiser steps that made its weights."""
    path: Path
