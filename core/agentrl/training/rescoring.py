"""Rescoring: the stored episodes of a run under another reward, without a call of the model.

The reward is given what it would have been given when the episode ended: the answer, the task and a view of the
episode. What it says is compared with the rewards that the episodes had: which changed, and how the ranking within each
group did, since that is what training learns from. An episode that cannot be scored is counted with its reason; it has
no reward, not a reward of 0.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from agentrl.errors import AgentRLError, BudgetError, RewardError, RunError, one_line
from agentrl.loops import Overdue, in_time
from agentrl.reporting.contract import Reporter
from agentrl.rewards.scoring import Scorer
from agentrl.rollout.contract import Episode, EpisodeView, Failure, Phase, delivered_calls
from agentrl.runs.reader import Run
from agentrl.tokens.contract import TokenTree
from agentrl.tokens.template import text_of

__all__ = ["Answers", "GroupScores", "Rescored", "Rescorer", "Rescoring", "rescore"]

Answers = Literal["stored", "last-message"]
"""What is scored: the answer that the store holds, or the text of the last message that the policy wrote."""

_SAME = 1e-9
"""Rewards that differ by no more are the same."""
_FAILED = "the reward failed"


@dataclass(frozen=True, slots=True)
class Rescored:
    """An episode whose reward has been asked for again."""

    episode: Episode
    """With the new reward, or as failed where the reward failed."""
    before: float | None
    """The reward that it had."""
    after: float | None
    """``None`` where it was not scored, or could not be."""
    why: str | None = None
    """Why it has no new reward."""

    @property
    def changed(self) -> bool:
        """Whether its reward is another than it was."""
        if self.before is None or self.after is None:
            return False
        return not math.isclose(self.before, self.after, rel_tol=_SAME, abs_tol=_SAME)


@dataclass(frozen=True, slots=True)
class GroupScores:
    """The rewards of those episodes of a group that had one and have one again."""

    before: Sequence[float]
    after: Sequence[float]

    @property
    def pairs(self) -> int:
        """How many pairs of episodes one reward told apart."""
        return int((self._signs(self.before) != 0).sum()) // 2

    @property
    def flipped(self) -> int:
        """How many of those pairs the other reward ranks the other way round."""
        return int((self._signs(self.before) * self._signs(self.after) < 0).sum()) // 2

    @property
    def tau(self) -> float | None:
        """Kendall's tau-b of the two rankings (Kendall 1945); ``None`` where one of them tells no two apart."""
        before, after = self._signs(self.before), self._signs(self.after)
        scale = math.sqrt(float(np.abs(before).sum()) * float(np.abs(after).sum()))
        return float((before * after).sum()) / scale if scale else None

    @property
    def has_another_best(self) -> bool:
        """Whether none of the episodes that were best is among the best now."""
        best = [{n for n, value in enumerate(each) if value == max(each)} for each in (self.before, self.after)]
        return not best[0] & best[1]

    @staticmethod
    def _signs(rewards: Sequence[float]) -> np.ndarray[Any, Any]:
        values = np.array(rewards, dtype=np.float64)
        difference = values[:, None] - values[None, :]
        return np.sign(np.where(np.abs(difference) <= _SAME, 0.0, difference))


@dataclass(frozen=True, slots=True)
class Rescoring:
    """What another reward makes of the episodes of a run."""

    reward: str
    groups: Sequence[Sequence[Rescored]]

    @property
    def episodes(self) -> list[Rescored]:
        """All of them, group by group."""
        return [each for group in self.groups for each in group]

    @property
    def scored(self) -> list[Rescored]:
        """Those that have a new reward."""
        return [each for each in self.episodes if each.after is not None]

    def reasons(self) -> Counter[str]:
        """Why the others have none, and how many for each reason."""
        return Counter(each.why for each in self.episodes if each.why is not None)

    def compared(self) -> list[GroupScores]:
        """The groups of which at least two episodes have a reward under both."""
        found: list[GroupScores] = []
        for group in self.groups:
            both = [(each.before, each.after) for each in group if each.before is not None and each.after is not None]
            if len(both) > 1:
                found.append(GroupScores([before for before, _ in both], [after for _, after in both]))
        return found

    def most_changed(self, count: int) -> list[Rescored]:
        """The ``count`` episodes whose reward changed the most, largest change first."""
        changed = [each for each in self.scored if each.changed]
        return sorted(changed, key=lambda each: -abs((each.after or 0.0) - (each.before or 0.0)))[:count]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        both = [each for each in self.scored if each.before is not None]
        compared = self.compared()
        taus = [tau for group in compared if (tau := group.tau) is not None]
        failed = {each.why: each for each in self.episodes if each.why is not None}
        return {
            "reward": self.reward,
            "episodes": len(self.episodes),
            "scored": len(self.scored),
            "changed": sum(each.changed for each in both),
            "mean_before": _mean([each.before for each in both if each.before is not None]),
            "mean_after": _mean([each.after for each in both if each.after is not None]),
            "groups": len(compared),
            "groups_without_difference_before": sum(not group.pairs for group in compared),
            "groups_without_difference_after": sum(
                not GroupScores(group.after, group.after).pairs for group in compared
            ),
            "groups_with_another_best": sum(group.has_another_best for group in compared),
            "pairs": sum(group.pairs for group in compared),
            "pairs_flipped": sum(group.flipped for group in compared),
            "kendall_tau": _mean(taus),
            "not_scored": [
                {"count": count, "reason": why, "episode": str(failed[why].episode.key)}
                for why, count in self.reasons().most_common()
            ],
            "rewards": [
                {"episode": str(each.episode.key), "before": each.before, "after": each.after} for each in self.episodes
            ],
        }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


@dataclass(frozen=True, slots=True)
class Rescorer:
    """Scores the episodes of groups again with one reward."""

    scorer: Scorer
    timeout: float
    """Seconds that the reward may take for one episode, and for one group where it compares."""
    answers: Answers = "stored"
    trains: bool = True
    """Whether the episodes are of training, which a reward may compare within their group."""

    async def group(self, episodes: Sequence[Episode]) -> list[Rescored]:
        """The episodes of one group with their new rewards. A reward that raises fails its episode alone."""
        asked = [(n, answer) for n, episode in enumerate(episodes) if (answer := self._answer(episode)) is not None]
        rewards: Mapping[int, float | RewardError] = {}
        if self.trains and self.scorer.compares and asked:
            rewards = await self._compared(episodes, asked)
        else:
            found = await asyncio.gather(*(self._scored(episodes[n], answer) for n, answer in asked))
            rewards = {n: each for (n, _), each in zip(asked, found, strict=True)}
        return [_rescored(episode, rewards.get(n), self._missing(episode)) for n, episode in enumerate(episodes)]

    def _answer(self, episode: Episode) -> Any:
        """What is scored of an episode; ``None`` where there is nothing."""
        if episode.outcome == "rejected" or (episode.failure is not None and episode.failure.side != "reward"):
            return None
        if self.answers == "stored":
            return episode.answer
        calls = delivered_calls(episode)
        return text_of(calls[-1].message) if calls else None

    def _missing(self, episode: Episode) -> str:
        """Why there is nothing to score."""
        if episode.outcome == "rejected":
            return "the agent rejected it"
        if episode.failure is not None and episode.failure.side != "reward":
            return f"it failed, on the side of the {episode.failure.side}"
        if self.answers == "last-message":
            return "it made no call of the model"
        return "the store has no answer of it: it was rewarded without a reward function, or the reward failed"

    async def _scored(self, episode: Episode, answer: Any) -> float | RewardError:
        return (await self._asked(lambda: _one(self.scorer, answer, episode), 1))[0]

    async def _compared(
        self, episodes: Sequence[Episode], asked: Sequence[tuple[int, Any]]
    ) -> dict[int, float | RewardError]:
        answers = [answer for _, answer in asked]
        views = [_view(episodes[n]) for n, _ in asked]

        def ask() -> Awaitable[Sequence[float | RewardError]]:
            return self.scorer.of_group(answers, episodes[0].data, views)

        found = await self._asked(ask, len(asked))
        return {n: each for (n, _), each in zip(asked, found, strict=True)}

    async def _asked(
        self, ask: Callable[[], Awaitable[Sequence[float | RewardError]]], count: int
    ) -> Sequence[float | RewardError]:
        """What the reward says within its deadline, or for each of ``count`` answers what went wrong."""

        async def awaited() -> Sequence[float | RewardError]:
            return await ask()

        try:
            return await in_time(awaited(), self.timeout)
        except Overdue:
            error = RewardError(
                f"the reward took longer than {self.timeout:g} s",
                fix="raise rollout.episode_timeout, or make the reward faster",
                fingerprint="the reward took too long",
            )
        except BudgetError:
            raise
        except RewardError as raised:
            error = raised
        except AgentRLError as raised:  # Such as one of the endpoint that a judge asks.
            error = RewardError(one_line(raised), fingerprint=type(raised).__name__)
        return [error] * count


async def _one(scorer: Scorer, answer: Any, episode: Episode) -> list[float | RewardError]:
    return [await scorer(answer, episode.data, _view(episode))]


def _view(episode: Episode) -> EpisodeView:
    return EpisodeView(episode.key, delivered_calls(episode))


def _rescored(episode: Episode, reward: float | RewardError | None, missing: str) -> Rescored:
    before = episode.reward
    if reward is None:
        return Rescored(episode, before, None, missing)
    bare = replace(episode, reward=None, call_rewards={}, reward_parts={}, failure=None)
    if isinstance(reward, RewardError):
        failure = Failure("reward", one_line(reward), getattr(reward, "fingerprint", ""))
        why = f"{_FAILED}: {failure.fingerprint or failure.reason}"
        return Rescored(replace(bare, outcome="failed", failure=failure), before, None, why)
    parts = getattr(reward, "parts", {})
    return Rescored(replace(bare, outcome="rewarded", reward=float(reward), reward_parts=parts), before, float(reward))


async def rescore(
    run: Run, name: str, rescorer: Rescorer, phase: Phase, concurrency: int, reporter: Reporter
) -> Rescoring:
    """Score the episodes of ``phase`` of a run again, about ``concurrency`` at a time, and show how far that is.

    ``name`` is what the reward is called. Raises ``RunError`` where nothing is scored, and what ends a run as well:
    that the budget of a reward is spent.
    """
    rows = run.groups(phase=phase)
    count = sum(len(row.episodes) for row in rows)
    if not count:
        raise RunError(f"the run {run.path} has stored no episode of {phase}", fix="name another run, or --phase")
    reporter.activity_started(f"scoring by {name}", episodes=count)
    largest = max(len(row.episodes) for row in rows)
    places = asyncio.Semaphore(max(1, concurrency // largest))

    async def scored(ordinal: int) -> list[Rescored]:
        async with places:
            episodes = sorted(run.load_episodes(phase=phase, group=ordinal), key=lambda each: each.key.sample)
            found = await rescorer.group(episodes)
        for each in found:
            reporter.episode_finished(each.episode)
        return [replace(each, episode=replace(each.episode, calls=(), tree=TokenTree())) for each in found]

    try:
        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(scored(row.ordinal)) for row in rows]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    rescoring = Rescoring(name, [task.result() for task in started])
    if not rescoring.scored:
        (why, times), *_ = rescoring.reasons().most_common(1)
        raise RunError(
            f"{name} scored none of {count} episodes; {times} of them since {why}",
            fix="pass --answer last-message to score the text of the last message of each episode"
            if rescorer.answers == "stored" and not why.startswith(_FAILED)
            else "mend the reward",
        )
    return rescoring
