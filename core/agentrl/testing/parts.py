"""From what a suite's class names to the part itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import TypeAdapter

from agentrl.config.models import Part
from agentrl.errors import AgentRLError
from agentrl.plugins.building import PartLike

__all__ = ["MISSING", "PartName", "as_part", "given", "told"]

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
    """The class attribute ``name`` of ``suite``, a function as such. Fails the test where it is not set."""
    value = getattr(suite, name)
    if value is MISSING:
        pytest.fail(f"{suite.__name__} does not say what it tests: set the class attribute `{name}`", pytrace=False)
    return value


@contextmanager
def told() -> Iterator[None]:
    """Fails the test, in the words of the error alone, where a part cannot be used."""
    try:
        yield
    except AgentRLError as error:
        pytest.fail(f"no run could use it: {error}", pytrace=False)
