"""Generalised advantage estimation: an advantage for every token, with the value head of the learner as a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from agentrl.algorithms.contract import ByCall, TokenTerms
from agentrl.config.section import Section

if TYPE_CHECKING:
    from agentrl.learner.contract import Floats

__all__ = ["GAEAdvantage"]


class GAEAdvantage:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) along each conversation, token by token.

    ``A_t = Σ_l (γλ)^l δ_{t+l}`` with ``δ_t = r_t + γ V_{t+1} - V_t``, where ``V_t`` is what the value head expected
    before token ``t`` and 0 after a conversation's end. Rewards come from the credit, so that any fits: the last token
    of a call has ``r = G(call) - γ · γ^(n-1) G(next call)``, with the ``n`` tokens of the call that follows in the
    conversation, and every other token has none. So the discounted sum of rewards from the last token of a call on is
    what the call earned, and with ``λ = 1`` the advantage is that, discounted back over the call's tokens, less the
    value. The value head learns ``A_t + V_t``.

    No episode is compared with another, so a group may have a single one.
    """

    class Settings(Section):
        gamma: float = Field(1.0, ge=0, le=1)
        """Discount of each token on what comes after it; 1 values late rewards as early ones."""
        lambda_: float = Field(0.95, ge=0, le=1, alias="lambda")
        """How far to look ahead before the value head is trusted: 1 takes what came, 0 the next value alone."""
        whiten: bool = True
        """Whether the advantages of a step are brought to mean 0 and standard deviation 1 over its tokens."""

    columns: ClassVar[tuple[str, ...]] = ("value",)

    def __init__(self, settings: Settings) -> None:
        self._gamma = settings.gamma
        self._lambda = settings.lambda_
        self._whiten = settings.whiten

    def __call__(self, returns: Sequence[ByCall]) -> Sequence[ByCall]:
        return returns

    def of_tokens(self, terms: TokenTerms) -> Mapping[str, Floats]:
        """The columns ``advantage`` and ``return``."""
        value = terms.columns["value"]
        advantage = np.empty(len(value))
        order = np.lexsort((terms.depth, terms.path))
        columns = (column[order].tolist() for column in (terms.path, terms.call, terms.advantage, value))
        advantage[order] = self._along(*columns)
        return {"advantage": _whitened(advantage) if self._whiten else advantage, "return": advantage + value}

    def _along(self, path: list[int], call: list[int], earned: list[float], value: list[float]) -> list[float]:
        """The advantages of terms in the order of their conversations, and of their depth in each."""
        gamma, decay = self._gamma, self._gamma * self._lambda
        advantages = [0.0] * len(path)
        advantage = over = to_come = 0.0
        for at in range(len(path) - 1, -1, -1):
            later = at + 1 < len(path)
            if not later or path[at] != path[at + 1]:
                advantage = over = 0.0
            to_come = earned[at] if not later or call[at] != call[at + 1] else gamma * to_come
            beyond = to_come - value[at]  # δ_t is what this exceeds the next by, discounted
            advantage = beyond - gamma * over + decay * advantage
            over = beyond
            advantages[at] = advantage
        return advantages


def _whitened(values: Floats) -> Floats:
    """``values`` less their mean, over their standard deviation; zeros where all are alike."""
    if not len(values):
        return values
    centred = values - values.mean()
    deviation = float(np.sqrt((centred**2).mean()))
    return centred / deviation if deviation > 1e-9 * max(1.0, float(np.abs(values).max())) else np.zeros_like(values)
