"""What a tracker is: somewhere that the numbers of a run go beside its folder.

A registered name is a callable that returns one, given the keys beside the name in the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Which run it is."""

    name: str
    folder: Path
    """The run folder; what a tracker keeps on this machine belongs in there."""
    agent: str
    model: str


class Tracker(Protocol):
    """Takes the numbers of one run; called from one thread, and expected to return soon.

    A tracker that raises is not called again, and the run goes on. Raising an ``AgentRLError`` from the
    constructor or from ``start`` refuses the run instead: a missing package, a key that is not there.
    """

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> None:
        """The run begins; ``config`` is the resolved config as plain JSON."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Flat numbers after ``step`` optimiser steps; an evaluation and a step may share a number."""
        ...

    def finish(self, outcome: str) -> None:
        """The run has ended: flush and close. ``outcome`` is as in ``summary.json``."""
        ...
