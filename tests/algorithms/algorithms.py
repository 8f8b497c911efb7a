"""Algorithms as a configuration names them."""

from __future__ import annotations

from agentrl.algorithms.building import build_algorithm
from agentrl.algorithms.contract import Algorithm
from agentrl.config.models import Config
from agentrl.plugins import Plugins


def build(algorithm: object, *, updates: int = 1) -> Algorithm:
    """What the configuration's ``algorithm`` key names, for steps of so many updates."""
    config = Config.model_validate({"agent": "math", "algorithm": algorithm})
    return build_algorithm(Plugins(), config.algorithm, updates=updates)


def grpo(**parts: object) -> Algorithm:
    """``grpo`` with some of its slots overridden."""
    return build({"name": "grpo", **parts})
