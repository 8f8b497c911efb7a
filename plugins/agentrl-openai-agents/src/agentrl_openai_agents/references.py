"""What a config refers to by `pkg.mod:Obj` or `file.py:Obj`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from agentrl.errors import ConfigError
from agentrl.plugins.references import (
    FileReference,
    ModuleReference,
    attribute_of,
    import_file,
    import_module,
    parse_reference,
)

__all__ = ["factory"]


@lru_cache
def factory(reference: str, key: str) -> Callable[..., Any]:
    """What ``reference``, the value of ``agent.kwargs.KEY``, names; ``ConfigError`` where that cannot be called."""
    made = _object(reference, key)
    if not callable(made):
        raise ConfigError(
            f"agent.kwargs.{key}={reference!r} is {type(made).__name__}, which cannot be called",
            fix=f"name a function or class that makes a {key}",
        )
    return made


def _object(reference: str, key: str) -> object:
    match parse_reference(reference):
        case ModuleReference(module, attribute):
            return attribute_of(import_module(module, key), attribute, f"module {module!r}")
        case FileReference(path, str(attribute)):
            return attribute_of(import_file(path, key), attribute, str(path))
    raise ConfigError(f"agent.kwargs.{key}={reference!r} refers to nothing", fix="write pkg.mod:Obj or file.py:Obj")
