"""Why a server's logprobs are likely to differ from the learner's, by how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    """Mean differences of logprobs, in nats, after an update."""

    dtype: str
    tied: bool
    """Whether the model's head is its embedding."""
    sampled: float
    """Of tokens that the server sampled after a prompt that it knew, from the learner's."""
    scored: float
    """Of the same tokens and the prompt, which the server computed afresh, from the learner's."""
    moved: float
    """Of what the server says of the prompt, from what it said before the update."""


def likely_cause(evidence: Evidence) -> tuple[str, str]:
    """The cause, and what to do about it."""
    tolerance = TOLERANCES[evidence.dtype]
    if evidence.scored <= tolerance:
        return "it goes on with a prefix cache that older weights computed", _report("clears its cache")
    if evidence.moved <= _UNMOVED:
        return "it still computes with the older weights", _report("took the new weights")
    if evidence.scored <= _ROUNDING * tolerance:
        return f"{evidence.dtype} rounds too much for this model", "set inference.backend.dtype to float32"
    if evidence.tied:
        return (
            "the model's embeddings are tied, and its head may be the old one",
            _report("took the new weights at both ends"),
        )
    return (
        "it runs another model than the learner, or changes it, as quantisation does",
        "serve what is trained; look for quantisation or overrides among inference.backend.args",
    )


def _report(what: str) -> str:
    return f"this vLLM confirmed that it {what}: use a version that agentrl-vllm is tested with"
