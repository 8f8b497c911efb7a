"""Evaluation: held-out tasks run by the same agent code, once sampled and once greedily."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.config.models import Config
from agentrl.errors import RunError
from agentrl.gateway.contract import SessionSettings
from agentrl.rollout.contract import Episode, EpisodeKey, Group, Phase
from agentrl.rollout.dispatcher import Dispatcher, GroupRequest
from agentrl.runs.tally import mean, mean_parts
from agentrl.tasks.contract import TaskSet

__all__ = ["Evaluation", "Evaluator"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation measured; rewards are means over the episodes that have one."""

    step: int
    sampled: float
    """Mean reward at `evaluation.temperature`."""
    greedy: float | None
    """Mean reward at temperature 0; ``None`` for a model that does not take it."""
    episodes: int
    """How many episodes the readings took together."""
    failed: int
    rejected: int
    folder: Path | None = None
    """Where its episodes are kept; ``None`` for one within a run, whose folder has them."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Means of the parts of rewards at `evaluation.temperature`, by name."""
    cost: Mapping[str, Any] = field(default_factory=dict)
    """What it cost, as ``Summary.cost`` says it; empty for one within a run, whose summary has it."""

    @classmethod
    def of_metrics(cls, step: int, metrics: Mapping[str, float | None]) -> Evaluation:
        """The evaluation that was logged as ``metrics``."""
        numbers = {name.removeprefix("evaluation/"): value for name, value in metrics.items() if value is not None}
        parts = {name.removeprefix("parts/"): value for name, value in numbers.items() if name.startswith("parts/")}
        return cls(
            step=step,
            sampled=numbers["reward"],
            greedy=numbers.get("reward_greedy"),
            episodes=int(numbers.get("episodes", 0)),
            failed=int(numbers.get("failed", 0)),
            rejected=int(numbers.get("rejected", 0)),
            parts=parts,
        )

    def metrics(self) -> dict[str, float]:
        """As logged: `evaluation/reward`, `evaluation/reward_greedy`, …"""
        greedy = {} if self.greedy is None else {"evaluation/reward_greedy": self.greedy}
        return {
            "evaluation/reward": self.sampled,
            **greedy,
            "evaluation/episodes": self.episodes,
            "evaluation/failed": self.failed,
            "evaluation/rejected": self.rejected,
            **{f"evaluation/parts/{name}": value for name, value in self.parts.items()},
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the rewards under the names that metrics and summaries give them."""
        return {
            "step": self.step,
            "reward": self.sampled,
            "reward_greedy": self.greedy,
            "episodes": self.episodes,
            "failed": self.failed,
            "rejected": self.rejected,
            "folder": None if self.folder is None else str(self.folder),
            "parts": dict(self.parts),
            "cost": dict(self.cost),
        }


class Evaluator:
    """Runs the same held-out tasks every time."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        tasks: TaskSet,
        config: Config,
        *,
        greedy: bool = True,
        kept: Callable[[Phase, int], Mapping[int, Sequence[Episode]]] = lambda phase, version: {},
    ) -> None:
        """``greedy`` says whether the model takes temperature 0.

        ``kept`` tells which episodes of the evaluation of a version exist already, by the ordinals of their groups, as
        after a run was resumed. They are not run again.
        """
        self._kept = kept
        self._count = min(config.evaluation.tasks, len(tasks))
        self._greedy = greedy
        self._tasks = tasks
        self._dispatcher = dispatcher
        self._config = config

    @property
    def episodes(self) -> int:
        """How many episodes one evaluation runs."""
        return self._count * (self._config.evaluation.samples_per_task + self._greedy)

    async def run(self, version: int) -> Evaluation:
        """Evaluate the weights of policy version ``version``.

        Everything random derives from the run's seed, the version, the task and the sample, so the same
        weights always measure the same. Raises ``RunError`` when too many episodes fail.
        """
        section = self._config.evaluation
        override = self._config.rollout.override
        sampled = await self._measure("eval", version, section.samples_per_task, section.temperature, override)
        greedy: Sequence[Group] = ()
        if self._greedy:
            greedy = await self._measure("eval-greedy", version, 1, 0.0, {**override, "temperature": 0.0})
        episodes = [episode for group in (*sampled, *greedy) for episode in group.episodes]
        return Evaluation(
            step=version,
            sampled=_mean_reward(sampled),
            greedy=_mean_reward(greedy) if greedy else None,
            episodes=len(episodes),
            failed=sum(episode.outcome == "failed" for episode in episodes),
            rejected=sum(episode.outcome == "rejected" for episode in episodes),
            parts=mean_parts(episode for group in sampled for episode in group.episodes),
        )

    async def _measure(
        self, phase: Phase, version: int, samples: int, temperature: float, override: Mapping[str, Any]
    ) -> Sequence[Group]:
        def settings(key: EpisodeKey) -> SessionSettings:
            return SessionSettings(
                training=False,
                model=self._config.model.name,
                temperature=temperature,
                max_tokens=self._config.rollout.max_tokens,
                override=override,
                versions=(version, version),
                seed_key=(self._config.seed, phase, version, key.task, key.sample),
            )

        first = version * len(self._tasks)
        kept = self._kept(phase, version)
        requests = []
        for task in range(self._count):
            ended = [episode for episode in kept.get(first + task, ()) if episode.key.sample < samples]
            request = GroupRequest(phase, first + task, task, self._tasks[task], range(samples), settings, ended)
            requests.append(request)
        return await self._dispatcher.collect(requests)


def _mean_reward(groups: Sequence[Group]) -> float:
    rewards = [episode.reward for group in groups for episode in group.episodes if episode.reward is not None]
    if not rewards:
        raise RunError(
            "the agent rejected every held-out task: none has a reward",
            fix="return a reward instead of None, or evaluate on other tasks (tasks.eval)",
        )
    return mean(rewards)
