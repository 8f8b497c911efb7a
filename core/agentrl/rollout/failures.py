"""Whose fault a failure is, and when failures stop a run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

from agentrl.agents.exceptions import authors_traceback, describe, fingerprint_of, is_api_error
from agentrl.errors import AgentError, AgentRLError, EpisodeTimeout, ModelTimeout, RunError, Side, one_line, shortened
from agentrl.rollout.contract import Activity, EpisodeKey, Failure

__all__ = ["SMALLEST_WINDOW", "FailureBudget", "RaisedElsewhere", "attribute", "too_late"]

_TRANSIENT: Final[frozenset[Side]] = frozenset({"backend", "worker"})
"""Sides whose failures are tried again: an agent's own would only repeat."""

SMALLEST_WINDOW = 16
"""Episodes that a failure budget looks at where a step has fewer: of a handful, half may fail by chance."""

_REASON_CHARACTERS = 400
_REASONS_TOLD = 3


def attribute(error: BaseException, refusals: Sequence[AgentRLError] = ()) -> Failure:
    """The failure of an episode that ``error`` has ended: its side, reason and fingerprint.

    ``refusals`` are the errors with which the gateway answered the episode's calls. Where ``error`` is one that the
    agent's HTTP client made of such an answer, the failure is that of the answer.
    """
    answered = refusals[-1] if refusals and _is_of_an_answer(error) else None
    told = error if answered is None else answered
    ours = told if isinstance(told, AgentRLError) else None
    return Failure(
        side="agent" if ours is None else ours.side,
        reason=describe(told) if ours is None else one_line(str(ours))[:_REASON_CHARACTERS],
        fingerprint=fingerprint_of(told),
        traceback=authors_traceback(error),
        # An episode that has used up its time is not run for as long again.
        transient=ours is not None and ours.side in _TRANSIENT and not isinstance(ours, EpisodeTimeout),
    )


def _is_of_an_answer(error: BaseException) -> bool:
    """Whether an agent's exception is its HTTP client's, raised here or in the process that ran the agent."""
    if isinstance(error, AgentRLError):
        return isinstance(error, RaisedElsewhere) and error.api_error
    return is_api_error(error)


class RaisedElsewhere(AgentError):
    """What an agent raised in another process; ``api_error`` says whether its HTTP client raised it."""

    def __init__(self, message: str, *, api_error: bool, fingerprint: str | None = None) -> None:
        super().__init__(message, fingerprint=fingerprint)
        self.api_error = api_error


def too_late(deadline_s: float, activity: Activity) -> EpisodeTimeout:
    """The error of an episode that did not end within ``deadline_s`` seconds and was at ``activity`` then.

    It is the model's where waiting for the model took more than half of that time, else the agent's.
    """
    late = f"the episode did not end within {deadline_s:g} s; it was {activity.words}"
    if activity.waited > deadline_s / 2:
        return ModelTimeout(
            f"{late}, and had waited {activity.waited:.1f} s for the model in all",
            fix="see why the engine is that slow, lower rollout.concurrency, or raise rollout.episode_timeout",
            fingerprint="the episode did not end in time for want of the model's answers",
        )
    return EpisodeTimeout(late, fix="raise rollout.episode_timeout, or make the agent faster")


class FailureBudget:
    """Stops a run of which too large a share fails: a sliding window over the most recently finished episodes."""

    def __init__(self, share: float, window: int) -> None:
        """More than ``share`` of the last ``window`` episodes may not fail, nor may all of them.

        An episode that has not finished yet counts as one that does not fail, so that the first few of a run that
        happen to fail stop nothing.
        """
        self._share = share
        self._window: deque[tuple[EpisodeKey, Failure | None]] = deque(maxlen=window)
        self._size = window
        self._failed = 0

    def add(self, key: EpisodeKey, failure: Failure | None) -> None:
        """Take in a finished episode, with its failure if it has failed.

        Raises ``RunError``, with the commonest reasons and a key of each, once the budget is spent.
        """
        if len(self._window) == self._size:
            self._failed -= self._window[0][1] is not None
        self._window.append((key, failure))
        self._failed += failure is not None
        if failure is not None and (self._failed > self._share * self._size or self._failed == self._size):
            raise self._spent(f"{self._failed} of the last {len(self._window)} episodes failed")

    def conclude(self, episodes: int, failed: int) -> None:
        """Take in that ``failed`` of the ``episodes`` that belong together failed: those of a step or an evaluation.

        Raises ``RunError`` where all of them did, which is over any budget, however few they are.
        """
        if failed and failed == episodes:
            raise self._spent(f"all of {episodes} episodes failed" if episodes > 1 else "the only episode failed")

    def _spent(self, what: str) -> RunError:
        failures = [(failure, key) for key, failure in self._window if failure is not None]
        counts = Counter(failure.kind for failure, _ in failures)
        first = {failure.kind: (failure, key) for failure, key in reversed(failures)}
        reasons = [
            f"{count}x {shortened(one_line(first[kind][0]), _REASON_CHARACTERS)} [{first[kind][1]}]"
            for kind, count in counts.most_common(_REASONS_TOLD)
        ]
        budget = f", or raise rollout.failure_budget above {self._share:g}" if self._share < 1 else ""
        return RunError(
            f"{what}, over the failure budget; commonest: {'; '.join(reasons)}", fix=f"mend the cause{budget}"
        )
