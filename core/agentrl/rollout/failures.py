"""Whose fault a failure is: from what ended an episode to a side, a reason and a fingerprint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agentrl.agents.exceptions import (
    authors_traceback,
    describe,
    fingerprint_of,
    is_api_error,
    is_cut_off,
    texts_of,
)
from agentrl.errors import (
    AgentError,
    AgentRLError,
    EpisodeTimeout,
    GatewayError,
    ModelTimeout,
    PolicyError,
    Side,
    one_line,
)
from agentrl.gateway.contract import CONTEXT_EXCEEDED
from agentrl.rollout.contract import Activity, Failure

__all__ = ["RaisedElsewhere", "attribute", "mistake_of", "too_late", "too_long"]

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


def mistake_of(error: Exception, refusals: Sequence[AgentRLError], *, refused_last: bool) -> PolicyError | None:
    """The mistake of the policy that has ended an episode with ``error``; ``None`` where that is a failure.

    A ``PolicyError`` is one. So is a limit that the policy ran into: a prompt that outgrew the context, or a completion
    that was cut and that the agent's SDK could not read. The gateway's refusal of such a prompt is the last of
    ``refusals``; ``error`` came of it where it repeats the refusal's words, or is the agent's HTTP client's while
    ``refused_last``, no call having succeeded since. How an SDK wraps the refusal does not matter then.
    """
    told = error if isinstance(error, PolicyError) else None
    if told is not None and getattr(told, "limit", None) is not None:
        return told
    cause = error if told is None else error.__cause__
    answer = getattr(told, "answer", "")
    refusal = refusals[-1] if refusals else None
    if isinstance(refusal, GatewayError) and refusal.code == CONTEXT_EXCEEDED:
        is_answered = refused_last and cause is not None and _is_of_an_answer(cause)
        if is_answered or one_line(refusal.message) in one_line(texts_of(error)):
            named = fingerprint_of(refusal)
            return PolicyError(refusal.message, answer=answer, limit="context", fix=refusal.fix, fingerprint=named)
    if is_cut_off(error) or (isinstance(cause, RaisedElsewhere) and cause.cut_off):
        what = error.message if isinstance(error, AgentRLError) else describe(error)
        return PolicyError(what, answer=answer, limit="tokens", fingerprint=fingerprint_of(error))
    return told


def too_long(length: int, longest: int) -> PolicyError:
    """The mistake of an episode with a path of ``length`` tokens, where a pass takes ``longest`` at most."""
    return PolicyError(
        f"a context of {length} tokens does not fit training.tokens_per_batch={longest}",
        limit="pass",
        fix=f"set training.tokens_per_batch to {length} or more, or bound the agent's turns and tokens",
        fingerprint="a context does not fit training.tokens_per_batch",
    )


def _is_of_an_answer(error: BaseException) -> bool:
    """Whether an agent's exception is its HTTP client's, raised here or in the process that ran the agent."""
    if isinstance(error, AgentRLError):
        return isinstance(error, RaisedElsewhere) and error.api_error
    return is_api_error(error)


class RaisedElsewhere(AgentError):
    """What an agent raised in another process.

    ``api_error`` says whether its HTTP client raised it, and ``cut_off`` whether that was because a completion ended at
    its limit of tokens.
    """

    def __init__(self, message: str, *, api_error: bool, cut_off: bool = False, fingerprint: str | None = None) -> None:
        super().__init__(message, fingerprint=fingerprint)
        self.api_error = api_error
        self.cut_off = cut_off


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
