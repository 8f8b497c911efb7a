"""Whether the engine samples from the learner's weights, by what each step's batch says of it anyway.

Under equal weights the log-probabilities of engine and learner differ by rounding alone. How much that comes to is seen
in the first step, before any weights have changed; an engine that goes on with old weights leaves it by orders of
magnitude, and the further the longer it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agentrl.errors import BackendError

__all__ = ["MismatchWatch"]

_OTHER_WEIGHTS = 0.5
"""Nats a token that no rounding comes to, be it to 4 bits."""
_MUCH = 0.05
"""More than rounding to 16 bits comes to."""
_EXACT = 1e-6
"""Rounding to 32 bits stays below it."""
_EXACT_LIMIT = 1e-4
_UNCERTAIN = 0.1
"""Nats of entropy a token."""
_LIMIT = 0.1
_GROWTH = 100.0
"""How many times the first step's mismatch another may have; a long run that samples in 16 bits reaches ten."""
_FIX = (
    "mend the backend's update_weights, or use another inference.backend; agentrl doctor and "
    "agentrl.testing.BackendConformance hold it against the learner"
)


@dataclass
class MismatchWatch:
    """Looks at the mismatch of one step after the other."""

    warn: Callable[[str], None]
    _first: float | None = None
    _limit: float = 0.0

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raise ``BackendError`` where the engine cannot have sampled step ``step`` from the learner's weights.

        A first step that is merely far off is warned of.
        """
        mismatch = metrics.get("policy/mismatch_kl")
        if mismatch is None:  # Nothing was trained.
            return
        if self._first is None:
            self._begin(max(mismatch, 0.0), metrics.get("policy/entropy", 0.0))
        elif mismatch > self._limit:
            raise BackendError(
                f"the inference engine does not sample from the learner's weights: in step {step} its "
                f"log-probabilities are off by a mismatch KL of {mismatch:.2g} a token, which was {self._first:.2g} "
                "before any weights had changed",
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
