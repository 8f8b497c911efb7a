"""A model whose weights never change, such as the reference that a policy is held near."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.config.training import TrainingSection
from agentrl.learner.contract import Scores, Targets
from agentrl.learner.folder import has_room_in_float32, load_model, precision_on
from agentrl.learner.masters import Masters
from agentrl.learner.packing import check_targets
from agentrl.learner.policy import Policy
from agentrl.learner.probe import probe_forest
from agentrl.machine import find_device

if TYPE_CHECKING:
    from agentrl.learner.contract import Ints

__all__ = ["FrozenModel"]


class FrozenModel:
    """Scores tokens as the learner does: on its device, in its precision, and over the forest where the model takes it.

    It has no gradients and no optimiser, so it costs the memory of its weights alone.
    """

    def __init__(self, folder: Path, settings: TrainingSection) -> None:
        """Load the model in ``folder``. Raises ``ConfigError`` where it holds no causal language model."""
        device = find_device(settings.device, "training.device")
        model = load_model(folder)
        model.requires_grad_(False)
        precision = precision_on(device, settings.precision)
        if has_room_in_float32(model, device):  # The probe is sharper there.
            model.to(device)  # type: ignore[arg-type]
            probe_forest(model)
            Masters().take(model, device, precision)
        else:
            Masters().take(model, device, precision)
            probe_forest(model)
        self._policy = Policy(model)
        self._tokens_per_batch = settings.pass_tokens

    def score(self, targets: Targets, paths: Sequence[Ints]) -> Scores:
        """As ``Learner.score``."""
        check_targets(targets, paths)
        return self._policy.score_paths(targets, paths, self._tokens_per_batch)
