"""What both sides of the training-step benchmark share: the workload, and how a side is paced.

A side trains in a process of its own, in blocks of steps: it waits for the word before each and reports after
it. So the two take turns within one run, and what else the machine does meets both alike.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

__all__ = ["Block", "Failure", "Pace", "Workload"]


@dataclass(frozen=True)
class Workload:
    """What is trained, and how long."""

    side: str
    """The module in this package that trains it."""
    model: Path
    max_tokens: int
    """Most tokens of a completion."""
    blocks: int
    """Blocks that count; one more, the first, warms up."""
    block_steps: int
    max_staleness: int = 0
    """Versions that agentrl's rollout may be ahead of its learner; TRL's side takes turns."""
    threads: int | None = None
    """CPU threads of TRL's side; ``None`` for torch's own number."""
    micro_batch: int = 64
    """Rows that TRL's side computes at once."""
    common: int = 0
    """Words that are put before every prompt, the same for all."""
    keys: tuple[str, ...] = ()
    """Further keys of agentrl's config, ``key=value`` each."""
    seed: int = 0
    groups: int = 8
    group_size: int = 8
    learning_rate: float = 1e-6
    """TRL's default: so small that both sides sample from the start model throughout, completions of equal lengths."""

    def system(self, text: str) -> str:
        """The system message of every prompt, which ends with ``text``."""
        return " ".join(["note"] * self.common + [text])

    @property
    def steps(self) -> int:
        return (1 + self.blocks) * self.block_steps


@dataclass(frozen=True)
class Block:
    """What a block of steps took."""

    wall: list[float]
    """Seconds of each step, from the end of the one before it: what is logged and stored is in it."""
    cpu: float
    """Seconds of CPU a step, all threads."""
    tokens: float
    """Mean length of a completion."""
    parts: dict[str, float]
    """Seconds a step by part of the side, where it tells them."""
    peak: float
    """MiB of memory that the side's process has held at most so far."""


@dataclass(frozen=True)
class Failure:
    """Sent in the place of a block by a side that cannot go on."""

    traceback: str


@dataclass
class Pace:
    """Counts a side's steps and holds it back between blocks."""

    workload: Workload
    parent: Connection
    parts: Callable[[], dict[str, float]] = dict
    """Seconds used up so far by each part of the side."""
    _done: int = 0
    _wall: list[float] = field(default_factory=list)
    _tokens: list[float] = field(default_factory=list)

    def begin(self) -> None:
        """Return when the next block is to begin."""
        self.parent.recv()
        self._wall, self._tokens = [], []
        self._cpu, self._before = time.process_time(), self.parts()
        self._mark = time.perf_counter()

    def step(self, tokens: float) -> None:
        """A step is done, with completions of mean length ``tokens``; returns when the next may begin."""
        now = time.perf_counter()
        self._wall.append(now - self._mark)
        self._tokens.append(tokens)
        self._mark = now
        self._done += 1
        if self._done % self.workload.block_steps == 0:
            self.parent.send(self._block())
            if self._done < self.workload.steps:
                self.begin()

    def _block(self) -> Block:
        cpu, after, steps = time.process_time() - self._cpu, self.parts(), self.workload.block_steps
        parts = {name: (seconds - self._before.get(name, 0.0)) / steps for name, seconds in after.items()}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return Block(self._wall, cpu / steps, sum(self._tokens) / steps, parts, peak)
