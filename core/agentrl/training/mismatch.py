"""A check that the engine samples from the learner's weights, from the log-probabilities that a step has anyway.

Under equal weights the log-probabilities of engine and learner differ by rounding alone. The first step, before any
weights have changed, shows how large that difference is. An engine that goes on with old weights exceeds it by orders
of magnitude, and by more with every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agentrl.errors import BackendError

__all__ = ["MismatchWatch"]

_OTHER_WEIGHTS = 0.5
"""Mismatch KL, in nats a token, that no rounding explains, not even to 4 bits."""
_MUCH = 0.05
"""Mismatch KL above what rounding to 16 bits causes."""
_EXACT = 1e-6
"""Mismatch KL that rounding to 32 bits stays below."""
_EXACT_LIMIT = 1e-4
"""Greatest mismatch KL of a step where the first step showed rounding to 32 bits."""
_UNCERTAIN = 0.1
"""Entropy, in nats a token, above which a small mismatch shows that the engine is exact, not that all is certain."""
_LIMIT = 0.1
"""Greatest mismatch KL of any other step, unless the first was within a factor of `_GROWTH` of it."""
_GROWTH = 100.0
"""Greatest mismatch KL as a multiple of the first step's; a long run that samples in 16 bits reaches ten."""
_FIX = (
    "mend the backend's update_weights, or use another inference.backend; agentrl doctor and "
    "agentrl.testing.BackendConformance hold it against the learner"
)


@dataclass
class MismatchWatch:
    """Follows the mismatch of a run, step by step."""

    warn: Callable[[str], None]
    """Takes a warning, one line of text."""
    _first: float | None = None
    _limit: float = 0.0

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Check the ``metrics`` of step ``step``, counted from 1, of which it reads ``policy/mismatch_kl``.

        Raises ``BackendError`` where the engine cannot have sampled the step from the learner's weights. Warns of a
        first step with more mismatch than rounding to 16 bits causes.
        """
        mismatch = metrics.get("policy/mismatch_kl")
        if mismatch is None:  # Nothing was trained.
            return
        if self._first is None:
            self._begin(max(mismatch, 0.0), metrics.get("policy/entropy", 0.0))
        else:
            self._compare(mismatch, f"in step {step}")

    def _compare(self, mismatch: float, when: str) -> None:
        if mismatch > self._limit:
            raise BackendError(
                f"the inference engine does not sample from the learner's weights: {when} its log-probabilities are "
                f"off by a mismatch KL of {mismatch:.2g} a token, which was {self._first:.2g} before any weights had "
                "changed",
                fix=_FIX,
            )

    def _begin(self, mismatch: float, entropy: float) -> None:
        self._first = mismatch
        # A policy that is certain of every token shows no rounding.
        is_exact = mismatch < _EXACT and entropy > _UNCERTAIN
        self._limit = _EXACT_LIMIT if is_exact else max(_LIMIT, _GROWTH * mismatch)
        off = (
            f"in the first step the inference engine's log-probabilities are off the learner's by a mismatch KL of "
            f"{mismatch:.2g} a token"
        )
        if mismatch > _OTHER_WEIGHTS:
            raise BackendError(f"{off}: they are of other weights, or of another temperature", fix=_FIX)
        if mismatch > _MUCH:
            self.warn(f"{off}, more than rounding to 16 bits comes to ({_FIX})")
