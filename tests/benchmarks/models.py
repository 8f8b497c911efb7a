"""The models that benchmarks run on."""

from __future__ import annotations

from pathlib import Path

from agentrl.config.models import ModelSection
from agentrl.errors import AgentRLError
from agentrl.inference.model_folder import find_model
from agentrl.plugins import Plugins

__all__ = ["PRETRAINED", "folder_of", "is_registered"]

PRETRAINED = "smollm2-135m"
"""Registered by a plugin: the second model, a real one, beside the bundled one."""


def is_registered(name: str) -> bool:
    return name in {entry.name for entry in Plugins().entries("models")}


def folder_of(name: str) -> Path:
    """The folder of a registered model, or of any other that ``model`` in a config may name."""
    try:
        return find_model(Plugins(), ModelSection(name=name))
    except AgentRLError as error:
        raise SystemExit(f"--model: {error}") from error
