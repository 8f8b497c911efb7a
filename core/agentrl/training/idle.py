"""Steps that changed no weights, and why: what a run should say of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

__all__ = ["IdleSteps"]

_PATIENCE = 5
"""After how many steps of which none changed anything that is worth a warning."""

_EQUAL = "in no group did one rewarded episode do better than another"
_FIXES = {
    _EQUAL: "choose tasks that succeed now and then, raise rollout.group_size or rollout.temperature, or let the "
    "agent's reward tell better from worse",
    "the agent rejected every episode": "return a reward instead of None",
    "no episode had a reward": "see why episodes fail, and return a reward instead of None",
    "none of the tokens could be trained": "set rollout.constrained=train where a grammar constrained them, or let the "
    "model draw from its own distribution: no grammar, and no temperature of 0",
    "the gradient was not a finite number": "return smaller rewards, lower training.learning_rate or set "
    "training.precision=float32",
}
_REJECTED, _UNREWARDED, _UNTRAINED, _INFINITE = [reason for reason in _FIXES if reason != _EQUAL]


class IdleSteps:
    """Counts the steps that changed no weights, by reason, and says when to warn."""

    def __init__(self, steps: int) -> None:
        """``steps`` are those of the whole run."""
        self._steps = steps
        self._reasons: Counter[str] = Counter()
        self._updates = 0

    def add(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Take in a step's metrics; returns a warning where there is something to say.

        That nobody in a group does better happens, and is said once nothing else has. Any other reason is said when
        it first comes.
        """
        reason = _reason(metrics)
        if reason is None:
            self._updates += 1
        else:
            self._reasons[reason] += 1
        if not self._updates and step in (_PATIENCE, self._steps):
            return self._nothing_learned(step)
        if reason not in (None, _EQUAL) and self._reasons[reason] == 1:
            return f"step {step} changed nothing: {reason} ({_FIXES[reason]})"
        return None

    def _nothing_learned(self, step: int) -> str:
        (commonest, _), *_ = ordered = self._reasons.most_common()
        reasons = commonest if len(ordered) == 1 else "; ".join(f"in {count}, {why}" for why, count in ordered)
        return f"nothing was learned up to step {step}: {reasons} ({_FIXES[commonest]})"


def _reason(metrics: Mapping[str, float]) -> str | None:
    """Why the step changed no weights; ``None`` where it did."""
    if metrics.get("policy/updated"):
        return None
    if not all(math.isfinite(metrics.get(name, 0.0)) for name in ("policy/grad_norm", "policy/loss")):
        return _INFINITE
    episodes, rejected = metrics["rollout/episodes"], metrics["rollout/rejected"]
    if "reward/mean" not in metrics:
        return _REJECTED if rejected == episodes else _UNREWARDED
    return _UNTRAINED if not metrics["tokens/trained"] and metrics["tokens/excluded"] else _EQUAL
