"""What becomes of the episodes in a process that ends."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from agentrl.errors import AgentError, AgentRLError, WorkerError

__all__ = ["Sentence", "fate", "how_it_ended"]

_PRINTED = "; it printed last: "
_FIX = "what it printed is in the run's logs/workers"


@dataclass(frozen=True, slots=True)
class Sentence:
    """Why a process is killed."""

    reason: str
    """What it did, after "the agent's process"."""
    culprit: int | None = None
    """The episode that is to blame, where that is known."""
    error: AgentRLError | None = None
    """What that episode fails with."""


def fate(episode: int, others: int, how: str, sentence: Sentence | None) -> AgentRLError:
    """What ``episode`` fails with when its process ends, in which ``others`` were running as well.

    Whoever was alone in it has brought it down. Among several that is anybody's guess, so each is told that it is
    the worker's fault, and is tried again: alone, so that the next time there is no guessing.
    """
    culprit = sentence.culprit if sentence else None
    if sentence is not None and sentence.error is not None and culprit == episode:
        return sentence.error
    if culprit is None and not others:
        what = "the agent's process"
        return AgentError(f"{what} {how}", fix=_FIX, fingerprint=f"{what} {_without_lines(how)}")
    return WorkerError(
        f"the process of this and {others} other episodes {how}",
        fix=_FIX,
        fingerprint=f"the process of several episodes {_without_lines(how)}",
    )


def how_it_ended(code: int, sentence: Sentence | None, last_lines: str) -> str:
    """How a process with this return code ended, after "the agent's process"."""
    how = f"{sentence.reason}, and was killed" if sentence else _ending(code)
    return f"{how}{_PRINTED}{last_lines}" if last_lines else how


def _without_lines(how: str) -> str:
    return how.partition(_PRINTED)[0]


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and no answer"
    hint = ", as where memory runs out" if -code == signal.SIGKILL else ""
    return f"was ended by {_signal_name(-code)}{hint}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
