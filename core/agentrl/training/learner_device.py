"""The device that a run's learner is on, which may be one of another machine."""

from __future__ import annotations

import torch

from agentrl.config.models import Config
from agentrl.machine import find_device

__all__ = ["is_elsewhere", "learner_device"]


def is_elsewhere(config: Config) -> bool:
    """Whether the scheduler may place the learner on another machine, of which nothing is known here."""
    return config.scheduler.type != "local"


def learner_device(config: Config) -> torch.device:
    """The device, as far as it is known here: a GPU of another machine need not be one of this one.

    ``training.device=auto`` goes by this machine wherever the learner is. Raises as ``find_device`` does.
    """
    if is_elsewhere(config) and config.training.device == "cuda":
        return torch.device("cuda")
    return find_device(config.training.device, "training.device")
