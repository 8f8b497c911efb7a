"""Whether a server computes with the learner's weights, by its logprobs; and if not, why that is likely to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentrl_vllm.movement import Movement

__all__ = ["TOLERANCES", "Evidence", "likely_cause"]

TOLERANCES: Mapping[str, float] = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.1}
"""Mean difference of logprobs, in nats, that computing in a type explains.

In float32 that is 1e-5 at most on one kind of device, and more between two; of 16 bits a rare token's logprob may be
off by a tenth and more, and a mean of 32 tokens by some hundredths.
"""

_UNMOVED = 1e-6
_ROUNDING = 10.0
"""How many times the tolerance a difference may be that is taken for rounding all the same."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is seen after an update: mean differences of logprobs, in nats, and how a text's have moved."""

    dtype: str
    tied: bool
    """Whether the model's head is its embedding."""
    sampled: float
    """Of tokens that the server sampled after a prompt that it knew, from the learner's."""
    scored: float
    """Of the prompt, which the server computed afresh, from the learner's."""
    moved: float
    """Of what the server says of the prompt, from what it said when it was last asked."""
    movement: Movement | None
    """Since then, where the learner was asked then too."""

    @property
    def is_off(self) -> bool:
        """Whether the server's logprobs are not the learner's."""
        return self.sampled > TOLERANCES[self.dtype]

    @property
    def is_behind(self) -> bool:
        """Whether they have not followed the learner's."""
        return self.movement is not None and (self.movement.is_missing or self.movement.is_partial)

    @property
    def is_wrong(self) -> bool:
        """Whether the weights are certain not to be the learner's.

        Of 16 bits a server may be behind and be right: what has been trained from weights of 16 bits moves by less
        than their last one for many steps, and arrives as no change at all.
        """
        moved, tolerance = self.movement, TOLERANCES[self.dtype]
        if self.is_off or moved is None or self.dtype == "float32":
            return self.is_off or self.is_behind
        return moved.is_other and moved.learner > tolerance


def likely_cause(evidence: Evidence) -> tuple[str, str]:
    """The cause of what is off or behind, and what to do about it."""
    tolerance, moved = TOLERANCES[evidence.dtype], evidence.movement
    if evidence.is_off and evidence.scored <= tolerance and not evidence.is_behind:
        return "it goes on with a prefix cache that older weights computed", _report("clears its cache")
    if moved.is_missing if moved else evidence.moved <= _UNMOVED:
        return "it still computes with the older weights", _report("took the new weights")
    if evidence.scored <= _ROUNDING * tolerance and not evidence.is_behind:
        return f"{evidence.dtype} rounds too much for this model", "set inference.backend.dtype to float32"
    if evidence.tied:
        return (
            "the model's embeddings are tied, and its head may be the old one",
            _report("took the new weights at both ends"),
        )
    if evidence.is_behind:
        return "only a part of the new weights has reached it, or none", _report("took the new weights")
    return (
        "it runs another model than the learner, or changes it, as quantisation does",
        "serve what is trained; look for quantisation or overrides among inference.backend.args",
    )


def _report(what: str) -> str:
    return f"this vLLM confirmed that it {what}: use a version that agentrl-vllm is tested with"
