"""Algorithms by name: each a choice of one part in every slot."""

from __future__ import annotations

from agentrl.algorithms.algorithm import Preset

__all__ = ["grpo"]

grpo = Preset(
    credit={"name": "credit.tree"},
    advantage={"name": "advantage.group"},
    normalisation={"name": "normalisation.sequence"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.clip"},
)
"""Group relative policy optimisation (Shao et al. 2024, eq. 3), without the KL term to a reference model.

The KL term holds a policy near its start; with verifiable rewards it costs a second model in memory and slows
learning down, and current practice leaves it out (Yu et al. 2025, section 2.3; Liu et al. 2025).
"""
