"""Whose fault a failure is, and when failures stop a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from agentrl.agents.raising import describe, is_api_error
from agentrl.errors import AgentError, AgentRLError, RunError, Side, one_line
from agentrl.rollout.episode import Failure

__all__ = ["TRANSIENT", "FailureBudget", "RaisedElsewhere", "attribute"]

TRANSIENT: Final[frozenset[Side]] = frozenset({"backend", "worker"})
"""Sides whose failures are tried again: an agent's own would only repeat."""

_REASON_CHARACTERS = 400


def attribute(error: BaseException, refusals: Sequence[AgentRLError]) -> Failure:
    """The side and reason of what ended an episode.

    ``refusals`` are the errors with which the gateway answered the episode's calls: an agent that
    dies of one dies of that, whatever its client made of it.
    """
    if refusals and _dies_of_an_answer(error):
        return Failure(refusals[-1].side, _shortened(str(refusals[-1])))
    if isinstance(error, AgentRLError):
        return Failure(error.side, _shortened(str(error)))
    return Failure("agent", describe(error))


def _dies_of_an_answer(error: BaseException) -> bool:
    """Whether an agent's exception is one of its HTTP client's, here or in the process that ran the agent."""
    if isinstance(error, AgentRLError):
        return isinstance(error, RaisedElsewhere) and error.api_error
    return is_api_error(error)


def _shortened(text: str) -> str:
    return one_line(text)[:_REASON_CHARACTERS]


class RaisedElsewhere(AgentError):
    """What an agent raised in another process; ``api_error`` says that it was its HTTP client's."""

    def __init__(self, message: str, *, api_error: bool, fix: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.api_error = api_error


class FailureBudget:
    """Counts the episodes of one batch and stops it once too large a share has failed."""

    def __init__(self, share: float, episodes: int, where: str) -> None:
        """``share`` of ``episodes`` may fail; ``where`` names the batch in the message."""
        self._share = share
        self._episodes = episodes
        self._where = where
        self._causes: Counter[str] = Counter()

    def add(self, failure: Failure) -> None:
        """Count a failure. Raises ``RunError`` with the commonest causes when the budget is spent."""
        self._causes[f"{failure.side}: {failure.reason}"] += 1
        failed = self._causes.total()
        if failed > self._share * self._episodes or failed == self._episodes:
            causes = "; ".join(f"{count}x {cause}" for cause, count in self._causes.most_common(3))
            raise RunError(
                f"{failed} of {self._episodes} episodes of {self._where} failed, over the failure budget; "
                f"commonest: {causes}",
                fix=f"mend the cause, or raise rollout.failure_budget above {self._share:g}",
            )
