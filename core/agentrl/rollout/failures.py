"""Whose fault a failure is: from what ended an episode to a side, a reason and a fingerprint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agentrl.agents.exceptions import authors_traceback, describe, fingerprint_of, is_api_error
from agentrl.errors import AgentError, AgentRLError, EpisodeTimeout, ModelTimeout, Side, one_line
from agentrl.rollout.contract import Activity, Failure

__all__ = ["RaisedElsewhere", "attribute", "too_late"]

_TRANSIENT: Final[frozenset[Side]] = frozenset({"backend", "worker"})
"""Sides whose failures are tried again: an agent's own would only repeat."""

_REASON_CHARACTERS = 400


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
