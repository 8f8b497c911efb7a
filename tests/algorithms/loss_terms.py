"""Loss terms at random, and as plain numbers, for formulas that are written term by term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from hypothesis import strategies as st

from agentrl.learner.contract import CorrectionTerms, ObjectiveTerms


class Term(NamedTuple):
    """One sampled token."""

    learner: float
    behaviour: float
    advantage: float
    age: int
    call: int


@dataclass
class Terms:
    """The terms of a pass."""

    each: list[Term]

    def of_call(self, call: int) -> list[Term]:
        return [term for term in self.each if term.call == call]

    def correction(self) -> CorrectionTerms:
        return CorrectionTerms(
            self._column("learner"), self._column("behaviour"), self._column("age"), self._column("call").long()
        )

    def objective(self, anchor=None) -> tuple[torch.Tensor, ObjectiveTerms]:
        """The log-probabilities that have a gradient, and what an objective is given of them."""
        logprob, behaviour = self._column("learner").requires_grad_(), self._column("behaviour")
        given = behaviour if anchor is None else torch.tensor(anchor, dtype=torch.float64)
        call = self._column("call").long()
        return logprob, ObjectiveTerms(logprob, given, self._column("advantage"), call, behaviour)

    def _column(self, name: str) -> torch.Tensor:
        return torch.tensor([getattr(term, name) for term in self.each], dtype=torch.float64)


@st.composite
def terms(draw) -> Terms:
    """Calls of one to five tokens, numbered with gaps and in any order; a call's tokens share an advantage."""
    made = []
    for call in draw(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)):
        advantage = draw(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0]))
        for _ in range(draw(st.integers(1, 5))):
            learner = draw(st.floats(-6.0, -1e-3))
            ratio = draw(st.floats(-1.5, 1.5))
            made.append(Term(learner, min(learner - ratio, -1e-3), advantage, draw(st.integers(0, 5)), call))
    return Terms(made)
