"""The reference by which an agent that was passed as an object can be found again."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

__all__ = ["reference_of"]


def reference_of(agent: Any) -> str:
    """``file.py:Obj`` for what a script defines, ``pkg.mod:Obj`` for what a module does, else a plain name.

    An instance, or what is defined inside a function, has no reference: its name only labels the run.
    """
    if not (inspect.isclass(agent) or inspect.isfunction(agent)):
        return type(agent).__name__
    if "<locals>" in agent.__qualname__:
        return agent.__name__
    if agent.__module__ != "__main__":
        return f"{agent.__module__}:{agent.__qualname__}"
    script = getattr(sys.modules["__main__"], "__file__", None)
    return f"{Path(script).resolve()}:{agent.__qualname__}" if script else agent.__name__
