"""Whether the engine samples from the learner's weights, by what each step's batch says of it anyway.

Under equal weights the log-probabilities of engine and learner differ by rounding alone. How much that comes to is seen
in the first step, before any weights have changed; an engine that goes on with old weights leaves it by orders of
magnitude, and the further the longer it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agentrl.errors import BackendError
from agentrl.gateway.completer import generate
from agentrl.inference.contract import Backend, Chunk, GenerationRequest, Sampling, completion_fault
from agentrl.loops import finish_in_thread

if TYPE_CHECKING:
    from agentrl.inference.contract import Weights

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
_PROMPT = 512
"""Most tokens of the prompt that it completes."""
_TOKENS = 32
"""Of the engine's own completion."""
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
    _limit_at_once: float = 0.0
    """Right after an update, by which there can be little but what the first step has shown."""
    _is_proven: bool = False

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raise ``BackendError`` where the engine cannot have sampled step ``step`` from the learner's weights.

        A first step that is merely far off is warned of.
        """
        mismatch = metrics.get("policy/mismatch_kl")
        if mismatch is None:  # Nothing was trained.
            return
        if self._first is None:
            self._begin(max(mismatch, 0.0), metrics.get("policy/entropy", 0.0))
        else:
            self._compare(mismatch, self._limit, f"in step {step}")

    async def prove(self, backend: Backend, weights: Weights, prompt_ids: Sequence[int], context: int) -> None:
        """Have ``backend``, of ``context`` tokens, complete a prompt, and hold that against ``weights``, its newest.

        Does nothing once the engine has been held against an update. Raises as ``look`` does.
        """
        if self._first is None or self._is_proven:
            return
        prompt_ids = prompt_ids[:_PROMPT]
        done = await _sampled(backend, prompt_ids, min(_TOKENS, context - len(prompt_ids)))
        if done is None:  # As calls of agents fail then too, where they are counted; the next update comes soon.
            return
        learner = await finish_in_thread(weights.logprobs, [*prompt_ids, *done.ids])
        log_ratio = np.array(learner[-len(done.ids) :]) - np.array(done.logprobs)
        self._is_proven = True
        mismatch = float(np.mean(np.expm1(log_ratio) - log_ratio))
        self._compare(mismatch, self._limit_at_once, f"after the update to version {weights.version}")

    def _compare(self, mismatch: float, limit: float, when: str) -> None:
        if mismatch > limit:
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
        self._limit = self._limit_at_once = max(_LIMIT, _GROWTH * mismatch)
        if is_exact:
            self._limit, self._limit_at_once = _EXACT_LIMIT, max(_EXACT, _GROWTH * mismatch)
        off = (
            f"in the first step the inference engine's log-probabilities are off the learner's by a mismatch KL of "
            f"{mismatch:.2g} a token"
        )
        if mismatch > _OTHER_WEIGHTS:
            raise BackendError(f"{off}: they are of other weights, or of another temperature", fix=_FIX)
        if mismatch > _MUCH:
            self.warn(f"{off}, more than rounding to 16 bits comes to ({_FIX})")


async def _sampled(backend: Backend, prompt_ids: Sequence[int], tokens: int) -> Chunk | None:
    """A completion of ``tokens`` tokens; ``None`` where the backend fails to make one."""
    if tokens < 1:
        return None
    try:
        done = await generate(backend, GenerationRequest(prompt_ids, Sampling(max_tokens=tokens)))
    except BackendError:
        return None
    return done if completion_fault(done) is None else None
