"""Where in an agent's code something happened."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from traceback import FrameSummary

import agentrl

__all__ = ["authors_place"]

_OURS = str(Path(agentrl.__file__).resolve().parent)
_STDLIB = str(Path(sysconfig.get_path("stdlib")).resolve())
_INSTALLED = str(Path(sysconfig.get_path("purelib")).resolve())


def authors_place(stack: Sequence[FrameSummary]) -> str:
    """`` at FILE:LINE, in FUNCTION`` for the innermost frame that the agent's author wrote; else nothing.

    ``stack`` has the innermost frame last.
    """
    frames = [frame for frame in reversed(stack) if not frame.filename.startswith("<")]
    # An installed agent lives among the libraries that it calls, so theirs are the second choice.
    for libraries in ((_OURS, _STDLIB, _INSTALLED), (_OURS, _STDLIB)):
        for frame in frames:
            if not str(Path(frame.filename).resolve()).startswith(libraries):
                return f" at {frame.filename}:{frame.lineno}, in {frame.name}"
    return ""
