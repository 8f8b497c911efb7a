"""From what a suite's class names to the part itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from agentrl.config.models import Part
from agentrl.plugins.building import PartLike

__all__ = ["MISSING", "PartName", "as_part", "given"]

PartName = str | Mapping[str, Any]
"""A part as a config writes it: its name, or ``{"name": …}`` with its keys."""

MISSING: Any = object()
"""The value of an attribute that a subclass has to set."""

_PARTS: TypeAdapter[Any] = TypeAdapter(Part)


def as_part(part: PartName) -> PartLike:
    """``part`` as the configuration holds it. Raises ``pydantic.ValidationError`` for what is none."""
    checked: PartLike = _PARTS.validate_python(part if isinstance(part, str) else dict(part))
    return checked


def given(suite: type, name: str) -> Any:
    """The class attribute ``name`` of ``suite``, a function as such. Raises ``TypeError`` where it is not set."""
    value = getattr(suite, name)
    if value is MISSING:
        raise TypeError(f"{suite.__name__} does not say what it tests: set the class attribute `{name}`")
    return value
