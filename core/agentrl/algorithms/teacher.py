"""On-policy distillation: a teacher tells, for every sampled token, how much likelier it would have been there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from agentrl.algorithms.contract import Algorithm, ByCall, Objection, TokenTerms
from agentrl.config.section import Section

if TYPE_CHECKING:
    from agentrl.learner.contract import Floats

__all__ = ["TeacherAdvantage", "TeacherSettings"]


class TeacherSettings(Section):
    """Where a teacher is, and how it is asked."""

    model: str = Field(min_length=1)
    """The teacher: a bundled name, a folder or a Hugging Face id as `model` takes them, or with `url` the endpoint's
    name of the model. Its vocabulary has to be that of the model under training."""
    url: str | None = None
    """Base URL of an endpoint that gives the log-probabilities of given token ids, as vLLM's completions do. Null loads
    the teacher beside the learner."""
    api_key_env: str | None = None
    """The environment variable that holds the endpoint's key; null for an endpoint that asks for none."""
    concurrency: int = Field(16, ge=1)
    """Most requests to the endpoint at the same time."""
    timeout: float = Field(120, gt=0)
    """Seconds that the endpoint may take for one conversation, all tries and pauses included."""
    max_retries: int = Field(5, ge=0)
    """How often the endpoint is asked again after 408, 409, 429, a 5xx or a broken connection, with growing pauses."""
    bound: float = Field(20.0, gt=0)
    """Greatest size of a token's advantage, in nats: what the teacher would never say does not outweigh all else."""


class TeacherAdvantage:
    """How much likelier a token is under a teacher than under the policy that sampled it, in nats.

    ``A = log π_teacher - log π`` of each sampled token, each under its own temperature. Its policy gradient is that of
    the reverse KL divergence ``KL(π ‖ π_teacher)`` at the positions that the policy itself reaches, with the next token
    as the only consequence (Agarwal et al. 2024, "On-policy distillation of language models", section 3; Gu et al.
    2024, MiniLLM, eq. 2, without the sum over later tokens). Rewards are reported and train nothing.
    """

    class Settings(TeacherSettings):
        """Where the teacher is."""

    LEAVES_WITHOUT_EFFECT: ClassVar = {"credit": ("discount",)}
    columns: ClassVar[tuple[str, ...]] = ("teacher",)

    def __init__(self, settings: Settings) -> None:
        self.teacher: TeacherSettings = settings
        """Where the teacher is, for whoever asks it."""

    def objection(self, algorithm: Algorithm) -> Objection | None:
        """Rewards train nothing beside a teacher, so what changes them has no sense."""
        if algorithm.shaping:
            return Objection(
                "shaping changes rewards, and a teacher looks at tokens alone", "leave algorithm.shaping out"
            )
        return None

    def __call__(self, returns: Sequence[ByCall]) -> Sequence[ByCall]:
        return [dict.fromkeys(episode, 0.0) for episode in returns]

    def of_tokens(self, terms: TokenTerms) -> Mapping[str, Floats]:
        """The column ``advantage``."""
        bound = self.teacher.bound
        return {"advantage": np.clip(terms.columns["teacher"] - terms.logprob, -bound, bound)}
