"""Running one episode: a session, the agent's code, its reward; whatever happens, the result is an ``Episode``."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from agentrl.agents.contract import Data
from agentrl.agents.exceptions import fingerprint_of
from agentrl.agents.result import as_result, parts_of, sums_of_parts
from agentrl.errors import AgentRLError, BudgetError, PolicyError, RewardError, one_line, shown
from agentrl.gateway.contract import SessionSettings
from agentrl.gateway.session import Session
from agentrl.loops import Overdue, in_time
from agentrl.rollout.contract import (
    LIMIT_NAMES,
    Activity,
    AgentRunner,
    Episode,
    EpisodeKey,
    EpisodeView,
    Failure,
    delivered_calls,
)
from agentrl.rollout.failures import attribute, mistake_of, too_long

Scored = TypeVar("Scored")

__all__ = ["EpisodeRunner", "Score", "ScoreGroup"]

Score = Callable[[Any, Mapping[str, Any], EpisodeView], Awaitable[float]]
"""Scores an answer, given the task's data and a view of the episode; raises ``RewardError``."""
ScoreGroup = Callable[
    [Sequence[Any], Mapping[str, Any], Sequence[EpisodeView]], Awaitable[Sequence[float | RewardError]]
]
"""Scores the answers of a task's episodes together: a reward or an error for each; raises ``RewardError`` for all."""


@dataclass(frozen=True, slots=True)
class EpisodeRunner:
    """Runs episodes of one agent."""

    agent: AgentRunner
    open_session: Callable[[SessionSettings], Session]
    score: Score | None
    """``None`` where the agent returns its own reward."""
    timeout: float
    """Seconds that the agent may take, and then the reward."""
    max_attempts: int
    """How often an episode is run at most."""
    agent_name: str = ""
    """What its episodes say of who ran them: ``Episode.agent``."""
    on_overflow: float | None = 0.0
    """The reward of an episode in which the policy ran into a limit; ``None`` rejects it."""
    longest: int | None = None
    """Most tokens of a path of an episode that is trained; a longer one has run into a limit."""
    score_group: ScoreGroup | None = None
    """Scores the answers of the episodes of a training group once all of them have ended; ``None`` where ``score``
    scores each when it ends. Episodes of evaluations are always scored one by one."""

    async def run_episode(self, key: EpisodeKey, data: Data, settings: SessionSettings) -> Episode:
        """Run one episode to its outcome. A failure is an outcome: nothing is raised but ``CancelledError``, and the
        ``BudgetError`` of a reward.

        With ``score_group`` an episode of training whose answer is to be scored has no reward yet: it ``waits``, and
        ``score_together`` gives it one.

        A failure on a side that may succeed another time is tried again, up to ``max_attempts`` runs in all, each
        further one alone in its process.
        """
        attempts = 1
        setbacks: tuple[Failure, ...] = ()
        episode = await self._attempt(key, data, settings)
        while attempts < self.max_attempts and episode.failure is not None and episode.failure.transient:
            attempts, setbacks = attempts + 1, (*setbacks, *episode.setbacks, episode.failure)
            episode = await self._attempt(key, data, settings, alone=True)
        version = 0 if settings.versions is None else settings.versions[0]
        setbacks = (*setbacks, *episode.setbacks)
        return replace(episode, attempts=attempts, setbacks=setbacks, version=version, agent=self.agent_name)

    async def _attempt(self, key: EpisodeKey, data: Data, settings: SessionSettings, *, alone: bool = False) -> Episode:
        began, started = time.monotonic(), time.time()
        session = self.open_session(settings)
        try:
            returned, mistake = await self._returned(data, session, settings, alone)
            session.close()
            await session.deliveries_known()
            ended = Episode(key, data, "rewarded", None, calls=session.calls, tree=session.tree)
            if returned is not None and settings.training:
                mistake = self._too_long(ended) or mistake
            episode = await self._rewarded(ended, returned) if mistake is None else await self._marked(ended, mistake)
        except BudgetError:
            raise
        except Exception as error:  # The boundary at which every failure gets its side.
            session.close()
            failure = attribute(error, session.refusals)
            episode = Episode(key, data, "failed", None, calls=session.calls, tree=session.tree, failure=failure)
        finally:
            session.close()
        setbacks = _setbacks(session.refusals, episode.failure)
        return replace(episode, seconds=time.monotonic() - began, setbacks=setbacks, started=started)

    async def _returned(
        self, data: Data, session: Session, settings: SessionSettings, alone: bool
    ) -> tuple[Any, PolicyError | None]:
        """What the agent returned; where a mistake of the policy ended it, its answer, and the mistake."""
        connection = {
            "base_url": session.base_url,
            "api_key": session.api_key,
            "http_client": session.http_client,
            "model": settings.model,
        }
        try:
            returned = await self.agent.run(
                data, connection, deadline_s=self.timeout, activity=lambda: _activity(session), alone=alone
            )
        except Exception as error:
            mistake = mistake_of(error, session.refusals, refused_last=session.refused_last)
            if mistake is None:
                raise
            return _answer_of(mistake), mistake
        return returned, None

    def _too_long(self, episode: Episode) -> PolicyError | None:
        length = 0 if self.longest is None else episode.tree.longest_path()
        return too_long(length, self.longest) if self.longest is not None and length > self.longest else None

    async def _marked(self, episode: Episode, mistake: PolicyError) -> Episode:
        """The episode with its mistake, and the reward of that."""
        limit = getattr(mistake, "limit", None)
        opening = "" if limit is None else f"{LIMIT_NAMES[limit]}: "
        told = opening + one_line(mistake)
        marked = replace(episode, mistake=told, mistake_fingerprint=opening + fingerprint_of(mistake))
        answer = _answer_of(mistake)
        said_nothing = isinstance(answer, str) and not answer
        if limit is not None and (self.score is None or said_nothing):
            rejected = self.on_overflow is None
            return replace(marked, outcome="rejected" if rejected else "rewarded", reward=self.on_overflow)
        return await self._rewarded(marked, 0.0 if self.score is None else answer)

    async def _rewarded(self, episode: Episode, returned: Any) -> Episode:
        if returned is None:
            return replace(episode, outcome="rejected")
        if self.score_group is not None and episode.key.phase == "train":
            return replace(episode, answer=returned)
        if self.score is not None:
            view = EpisodeView(episode.key, delivered_calls(episode))
            reward = await self._scored(self.score, returned, view, episode.data)
            return replace(episode, reward=float(reward), reward_parts=parts_of(reward), answer=returned)
        result = as_result(returned, [call.id for call in episode.calls])
        if isinstance(result, dict):
            parts = sums_of_parts(returned.values())
            return replace(episode, reward=sum(result.values()), call_rewards=result, reward_parts=parts)
        return replace(episode, reward=result, reward_parts=parts_of(returned))

    def waits(self, episode: Episode) -> bool:
        """Whether an episode that has run waits for the others of its group to be scored together with them."""
        return self.score_group is not None and episode.outcome == "rewarded" and episode.reward is None

    async def score_together(self, episodes: Sequence[Episode]) -> list[Episode]:
        """The ``episodes`` of a group that has ended, those that waited with the rewards that its answers were given.

        Those that have a reward already keep it, as after a run was resumed; their answers are compared with the
        others' all the same. An answer that could not be scored fails its episode. Raises ``BudgetError``.
        """
        compared = [episode for episode in episodes if self.waits(episode) or episode.answer is not None]
        if self.score_group is None or not any(map(self.waits, compared)):
            return list(episodes)
        began = time.monotonic()
        scored = await self._of_group(self.score_group, compared)
        seconds = time.monotonic() - began
        rewards = {episode.key: reward for episode, reward in zip(compared, scored, strict=True)}
        return [
            _given(episode, rewards[episode.key], seconds) if self.waits(episode) else episode for episode in episodes
        ]

    async def _of_group(self, score: ScoreGroup, episodes: Sequence[Episode]) -> Sequence[float | Exception]:
        answers = [episode.answer for episode in episodes]
        views = [EpisodeView(episode.key, delivered_calls(episode)) for episode in episodes]
        try:
            return await in_time(_awaited(score(answers, episodes[0].data, views)), self.timeout)
        except BudgetError:
            raise
        except Overdue:
            error: Exception = RewardError(
                f"the reward did not score the {len(answers)} answers of a group within {self.timeout:g} s",
                fix="raise rollout.episode_timeout, or make the reward faster",
                fingerprint="the reward did not score the answers of a group in time",
            )
        except Exception as raised:
            error = raised
        return [error] * len(episodes)

    async def _scored(self, score: Score, answer: Any, view: EpisodeView, data: Mapping[str, Any]) -> float:
        try:
            return await in_time(_awaited(score(answer, data, view)), self.timeout)
        except Overdue as error:
            raise RewardError(
                f"the reward did not score the answer {shown(answer, 80)} within {self.timeout:g} s",
                fix="raise rollout.episode_timeout, or make the reward faster",
                fingerprint="the reward did not score the answer in time",
            ) from error


def _answer_of(mistake: PolicyError) -> Any:
    """A class derived elsewhere need not have called ours when it was made."""
    return getattr(mistake, "answer", "")


async def _awaited(score: Awaitable[Scored]) -> Scored:
    return await score


def _given(episode: Episode, reward: float | Exception, seconds: float) -> Episode:
    """``episode`` with the reward that its answer was given together with others, which took ``seconds``."""
    took = episode.seconds + seconds
    if isinstance(reward, Exception):
        return replace(episode, outcome="failed", answer=None, failure=attribute(reward), seconds=took)
    return replace(episode, reward=float(reward), reward_parts=parts_of(reward), seconds=took)


def _setbacks(refusals: Sequence[AgentRLError], failure: Failure | None) -> tuple[Failure, ...]:
    """The refused calls that were worth another try, without the one that is ``failure``, which ended the episode."""
    failures = [answered for error in refusals if (answered := attribute(error)).transient]
    if failure is not None and failures and failure == failures[-1]:
        failures.pop()
    return tuple(failures)


def _activity(session: Session) -> Activity:
    done = len(session.calls)
    if session.in_flight:
        return Activity(f"waiting for the model, in call {done + 1}", session.waited)
    calls = f"after {done} calls" if done else "before any call"
    return Activity(f"in the agent's own code, {calls}", session.waited)
