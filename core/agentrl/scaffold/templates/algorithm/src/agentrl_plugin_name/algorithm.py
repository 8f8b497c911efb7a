"""The algorithm ``plugin-name``, and the advantage estimator that it is made with."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.algorithms.contract import ByCall, Preset
from pydantic import BaseModel, Field


class PluginNameAlgorithm:
    """The return of a call, less the mean of the group's other episodes.

    An episode counts once in that mean, however many calls it has. Without others
    there is nothing to compare with, and the advantage is 0.
    """

    class Settings(BaseModel):
        """The keys beside the name of the part."""

        scale: float = Field(1.0, gt=0)
        """What the difference is multiplied by."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, returns: Sequence[ByCall]) -> Sequence[ByCall]:
        means = [sum(each.values()) / len(each) for each in returns if each]
        others = len(means) - 1
        if others < 1:
            return [dict.fromkeys(each, 0.0) for each in returns]
        advantages = []
        for each in returns:
            own = sum(each.values()) / len(each) if each else 0.0
            baseline = (sum(means) - own) / others
            advantages.append(
                {call: self.settings.scale * (g - baseline) for call, g in each.items()}
            )
        return advantages


plugin_name = Preset(
    credit={"name": "credit.tree"},
    advantage={"name": "advantage.plugin-name"},
    normalisation={"name": "normalisation.sequence"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.clip"},
)
"""GRPO with this advantage."""
