"""Algorithms as a configuration names them."""

from __future__ import annotations

from agentrl.config.models import Config
from agentrl.plugins import Plugins
from agentrl.training.algorithm import Algorithm, build_algorithm


def grpo(**parts: object) -> Algorithm:
    """``grpo`` with some of its slots overridden."""
    config = Config.model_validate({"agent": "math", "algorithm": {"name": "grpo", **parts}})
    return build_algorithm(Plugins(), config.algorithm)
