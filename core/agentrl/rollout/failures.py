"""Whose fault a failure is, and when failures stop a run."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Sequence
from typing import Final

from agentrl.errors import AgentRLError, RunError, Side, one_line
from agentrl.rollout.episode import Failure
from agentrl.rollout.places import authors_place

__all__ = ["TRANSIENT", "FailureBudget", "attribute"]

TRANSIENT: Final[frozenset[Side]] = frozenset({"backend"})
"""Sides whose failures are tried again: an agent's own would only repeat."""

_REASON_CHARACTERS = 400


def attribute(error: BaseException, refusals: Sequence[AgentRLError]) -> Failure:
    """The side and reason of what ended an episode.

    ``refusals`` are the errors with which the gateway answered the episode's calls: an agent that
    dies of one dies of that, whatever its client made of it.
    """
    if isinstance(error, AgentRLError):
        return Failure(error.side, _shortened(str(error)))
    if refusals and _is_api_error(error):
        return Failure(refusals[-1].side, _shortened(str(refusals[-1])))
    place = authors_place(traceback.extract_tb(error.__traceback__))
    return Failure("agent", _shortened(f"{type(error).__name__}: {error}{place}"))


def _is_api_error(error: BaseException) -> bool:
    """Whether a chain of exceptions holds one of an HTTP client, whichever library it comes from."""
    seen: BaseException | None = error
    while seen is not None:
        if hasattr(seen, "status_code") or hasattr(seen, "request"):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _shortened(text: str) -> str:
    return one_line(text)[:_REASON_CHARACTERS]


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
