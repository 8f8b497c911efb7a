"""Which functions of core a run crosses, in the order in which it first does; see ``trace``."""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import agentrl

__all__ = ["Crossing", "Trace", "trace"]

_CORE = str(Path(agentrl.__file__).parent) + "/"
_OPTIMIZED = 0x1
"""The flag of code that is a function's; class bodies and modules have it not."""
_RESUME = dis.opmap["RESUME"]


@dataclass(frozen=True)
class Crossing:
    """A function of core, as ``rollout/dispatcher.py`` and ``Dispatcher.dispatch``."""

    file: str
    function: str


@dataclass
class Trace:
    """What was crossed: everything, and what lies between two marks."""

    everything: dict[Crossing, None] = field(default_factory=dict)
    between: dict[Crossing, None] = field(default_factory=dict)

    @property
    def files(self) -> set[str]:
        """The files of everything that was crossed."""
        return {crossing.file for crossing in self.everything}


@contextmanager
def trace(begins: Callable[[Crossing], bool], ends: Callable[[Crossing], bool]) -> Iterator[Trace]:
    """Trace this thread and all that are started in the block.

    ``Trace.between`` has what is crossed from the first function for which ``begins`` is true, to the first one
    after it for which ``ends`` is, which is left out.
    """
    traced = Trace()
    state = {"inside": False, "over": False}

    def called(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(_CORE) or _is_resumed(frame):
            return
        if not code.co_flags & _OPTIMIZED or code.co_name.startswith("<"):
            return
        crossing = Crossing(code.co_filename.removeprefix(_CORE), code.co_qualname)
        traced.everything.setdefault(crossing)
        state["over"] |= state["inside"] and ends(crossing)
        state["inside"] |= begins(crossing)
        if state["inside"] and not state["over"]:
            traced.between.setdefault(crossing)

    threading.setprofile(called)
    sys.setprofile(called)
    try:
        yield traced
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _is_resumed(frame: FrameType) -> bool:
    """Whether the call is a coroutine or generator that goes on where it waited: the profiler is told of each."""
    code, at = frame.f_code.co_code, frame.f_lasti
    return at > 0 and code[at] == _RESUME and bool(code[at + 1] & 3)
