"""The model that the suites run on."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from agentrl.config.models import ModelSection
from agentrl.inference.model_folder import find_model
from agentrl.plugins import Plugins
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer

__all__ = ["model_folder", "tiny_renderer"]


@lru_cache
def model_folder(name: str = "tiny") -> Path:
    """The folder of a bundled model, or of any other that ``model`` in a config may name."""
    return find_model(Plugins(), ModelSection(name=name))


@lru_cache
def tiny_renderer() -> Renderer:
    """How the model ``tiny`` writes conversations; it is Qwen3's format."""
    return load_renderer(model_folder())
