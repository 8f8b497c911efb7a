"""What the class attributes of a suite name: parts of a configuration, and models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from agentrl.config.models import ModelSection
from agentrl.config.section import Part
from agentrl.errors import AgentRLError
from agentrl.inference.model_folder import find_model
from agentrl.plugins import Plugins
from agentrl.plugins.building import PartLike
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer

__all__ = ["MISSING", "PartName", "as_part", "failing_tests", "model_folder", "required", "tiny_renderer"]

PartName = str | Mapping[str, Any]
"""A part as a config writes it: its name, or ``{"name": …}`` with its keys."""

MISSING: Any = object()
"""The value of an attribute that a subclass must set."""

_PARTS: TypeAdapter[Any] = TypeAdapter(Part)


def as_part(part: PartName) -> PartLike:
    """Returns ``part`` as a configuration holds it. Raises ``pydantic.ValidationError`` where it is not a part."""
    checked: PartLike = _PARTS.validate_python(part if isinstance(part, str) else dict(part))
    return checked


def required(suite: type, name: str) -> Any:
    """Returns the class attribute ``name`` of ``suite``. Fails the test where it is not set."""
    value = getattr(suite, name)
    if value is MISSING:
        pytest.fail(f"{suite.__name__} does not say what it tests: set the class attribute `{name}`", pytrace=False)
    return value


@contextmanager
def failing_tests() -> Iterator[None]:
    """Within it an error of agentrl fails the test, with the error's message and without a traceback."""
    try:
        yield
    except AgentRLError as error:
        pytest.fail(f"a run could not use it: {error}", pytrace=False)


@lru_cache
def model_folder(name: str = "tiny") -> Path:
    """Returns the folder of a model: a bundled name, a folder or a Hugging Face id. Raises as ``find_model`` does."""
    return find_model(Plugins(), ModelSection(name=name))


@lru_cache
def tiny_renderer() -> Renderer:
    """Returns the renderer of the model ``tiny``, which writes conversations in Qwen3's format."""
    return load_renderer(model_folder())
