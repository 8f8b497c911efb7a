"""The learner's weights as an inference backend takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel

from agentrl.algorithms.terms import Terms
from agentrl.learner.attention import NAME
from agentrl.learner.folder import save_model
from agentrl.learner.passes import Pass
from agentrl.learner.policy import Policy

if TYPE_CHECKING:
    from agentrl.algorithms.contract import Ints

__all__ = ["LearnerWeights"]


@dataclass(frozen=True, slots=True)
class LearnerWeights:
    """A view of the weights, not a copy: valid until the learner steps again."""

    version: int
    model: PreTrainedModel
    source: Path
    """The folder whose tokenizer goes with the weights."""

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of every parameter; one that is tied to others comes once, under its first name."""
        for name, parameter in self.model.named_parameters():
            yield name, parameter.detach()

    def save(self, folder: Path) -> None:
        """Write a model that ``AutoModelForCausalLM`` loads, tokenizer files included, into ``folder``.

        The folder is made where it is missing. Raises ``RunError`` where a file cannot be written; what has been
        written by then stays.
        """
        save_model(self.model, self.source, folder)

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int]) -> Sequence[float]:
        """Natural log-probabilities of ``ids[1:]`` at temperature 1, computed in the weights' own precision."""
        path = np.asarray(ids, dtype=np.int64)
        predicted = max(len(path) - 1, 0)
        if not predicted:
            return ()
        work = _row(path, is_forest=self.model.config._attn_implementation == NAME)
        scores: list[float] = Policy(self.model).score(work, _terms(path[1:])).logprob.tolist()
        return scores


def _row(path: Ints, *, is_forest: bool) -> Pass:
    """One path alone, each of whose positions predicts the next."""
    positions = np.arange(len(path))
    return Pass(
        ids=path[None],
        depth=positions[None],
        terms=positions[:-1],
        row=np.zeros_like(positions[:-1]),
        position=positions[:-1],
        subtree_end=np.full_like(positions, len(path)) if is_forest else None,
    )


def _terms(token: Ints) -> Terms:
    """A term for each token; nothing of it is going to be trained."""
    ones, none = np.ones(len(token)), np.zeros_like(token)
    return Terms(none, np.arange(len(token)), token, ones, ones, none, ones, ones, none, none)
