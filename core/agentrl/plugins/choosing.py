"""The one object that a file without ``:Obj`` means."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from agentrl.errors import ConfigError

__all__ = ["only_object"]

Adapts = Callable[[object], bool]
"""Whether a framework plugin turns an object into an agent."""


def only_object(module: ModuleType, path: Path, kind: str, noun: str, adapts: Adapts) -> object:
    """The only thing in ``module`` that looks like one of ``kind``; ``ConfigError`` where none or several do."""
    found = _agents(module, adapts) if kind == "agents" else _defined(module, inspect.isroutine, inspect.isclass)
    if not found:
        raise ConfigError(f"{path} defines no {noun}", fix=f"define one, or name an object as {path}:Obj")
    if len(found) > 1:
        names = ", ".join(found)
        raise ConfigError(f"{path} defines several: {names}", fix=f"say which, as in {path}:{next(iter(found))}")
    return next(iter(found.values()))


def _agents(module: ModuleType, adapts: Adapts) -> dict[str, object]:
    """What has an async ``run``, else what a plugin adapts, else what is called: async functions and their like."""
    return (
        _defined(module, _has_async_run)
        or {name: value for name, value in _public(module).items() if adapts(value)}
        or _defined(module, inspect.iscoroutinefunction, _has_async_call)
    )


def _has_async_run(value: object) -> bool:
    return inspect.iscoroutinefunction(getattr(value, "run", None))


def _has_async_call(value: object) -> bool:
    called = value if inspect.isclass(value) else type(value)
    return any(inspect.iscoroutinefunction(vars(base).get("__call__")) for base in called.__mro__)


def _public(module: ModuleType) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def _defined(module: ModuleType, *tests: Callable[[object], bool]) -> dict[str, object]:
    """The public classes, functions and instances of the file's own classes that pass one of ``tests``."""
    return {
        name: value
        for name, value in _public(module).items()
        if getattr(value, "__module__", None) == module.__name__ and any(test(value) for test in tests)
    }
