"""Whose fault a failure is, and when failures stop a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agentrl.agents.causes import cause_of
from agentrl.agents.raising import authors_traceback, describe, is_api_error
from agentrl.errors import AgentError, AgentRLError, EpisodeTimeout, RunError, Side, one_line
from agentrl.rollout.contract import EpisodeKey, Failure
from agentrl.rollout.tally import Causes

__all__ = ["FailureBudget", "RaisedElsewhere", "attribute"]

_TRANSIENT: Final[frozenset[Side]] = frozenset({"backend", "worker"})
"""Sides whose failures are tried again: an agent's own would only repeat."""

_REASON_CHARACTERS = 400


def attribute(error: BaseException, refusals: Sequence[AgentRLError] = ()) -> Failure:
    """The side, reason and cause of what ended an episode.

    ``refusals`` are the errors with which the gateway answered the episode's calls: an agent that
    dies of one dies of that, whatever its client made of it.
    """
    answered = refusals[-1] if refusals and _dies_of_an_answer(error) else None
    told = error if answered is None else answered
    ours = told if isinstance(told, AgentRLError) else None
    return Failure(
        side="agent" if ours is None else ours.side,
        reason=describe(told) if ours is None else _shortened(str(ours)),
        cause=cause_of(told),
        traceback=authors_traceback(error),
        # An episode that has used up its time is not run for as long again.
        transient=ours is not None and ours.side in _TRANSIENT and not isinstance(ours, EpisodeTimeout),
    )


def _dies_of_an_answer(error: BaseException) -> bool:
    """Whether an agent's exception is one of its HTTP client's, here or in the process that ran the agent."""
    if isinstance(error, AgentRLError):
        return isinstance(error, RaisedElsewhere) and error.api_error
    return is_api_error(error)


def _shortened(text: str) -> str:
    return one_line(text)[:_REASON_CHARACTERS]


class RaisedElsewhere(AgentError):
    """What an agent raised in another process; ``api_error`` says that it was its HTTP client's."""

    def __init__(self, message: str, *, api_error: bool, cause: str | None = None) -> None:
        super().__init__(message, cause=cause)
        self.api_error = api_error


class FailureBudget:
    """Counts the episodes of one batch and stops it once too large a share has failed."""

    def __init__(self, share: float, episodes: int, where: str) -> None:
        """``share`` of ``episodes`` may fail; ``where`` names the batch in the message."""
        self._share = share
        self._episodes = episodes
        self._where = where
        self._causes = Causes()

    def add(self, failure: Failure, key: EpisodeKey) -> None:
        """Count a failure of the episode ``key``. Raises ``RunError``, with the commonest causes, once too many are.

        When all have failed that is over any budget.
        """
        self._causes.add(failure.kind, str(failure), key)
        failed = self._causes.total
        if failed > self._share * self._episodes or failed == self._episodes:
            causes = "; ".join(map(str, self._causes.commonest(3)))
            budget = f", or raise rollout.failure_budget above {self._share:g}" if self._share < 1 else ""
            raise RunError(
                f"{failed} of {self._episodes} episodes of {self._where} failed, over the failure budget; "
                f"commonest: {causes}",
                fix=f"mend the cause{budget}",
            )
