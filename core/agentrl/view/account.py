"""What the metrics of a run come to so far: the newest value of each, and the troubles that learning health found."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

from agentrl.errors import AgentRLError
from agentrl.health.findings import Finding, Health
from agentrl.runs.contract import MetricsLine
from agentrl.runs.reader import Run

__all__ = ["Account", "Newest", "Trouble", "account"]


class Newest(NamedTuple):
    """The newest value of a metric."""

    step: int
    value: float | None


class Trouble(NamedTuple):
    """A trouble that learning health has found, and the step after which it had."""

    step: int
    finding: Finding


@dataclass
class Account:
    """What a run's metrics come to. Lines that were taken in before are not looked at again."""

    newest: dict[str, Newest] = field(default_factory=dict)
    """By name, in the order in which the metrics first came."""
    troubles: list[Trouble] = field(default_factory=list)
    """By the rules and thresholds of the run's own config, and so those that the run itself has said."""
    unjudged: str | None = None
    """Why no troubles could be looked for; ``None`` where they were."""
    _health: Health | None = None
    _first: MetricsLine | None = None
    _count: int = 0

    def take(self, run: Run, lines: Sequence[MetricsLine], *, is_over: bool) -> None:
        """Take in what is new in ``lines``, which are all lines of ``run``; ``is_over`` says that no more will come."""
        first = lines[0] if lines else None
        if first is not self._first or len(lines) < self._count:  # The reader has read another file.
            self.newest, self.troubles, self.unjudged, self._health, self._count = {}, [], None, None, 0
            self._first = first
        if self._health is None and self.unjudged is None:
            try:
                config = run.config
            except AgentRLError as error:
                self.unjudged = str(error)
            else:
                self._health = Health(config.health, config.training.steps, config.rollout.max_staleness)
        added = lines[self._count :]
        self._count = len(lines)
        for line in added:
            self.newest |= {name: Newest(line.step, value) for name, value in line.metrics.items()}
        if self._health is not None:
            self.troubles += [Trouble(*each) for each in self._health.review(added)]
            if is_over and lines:
                self.troubles += [Trouble(lines[-1].step, finding) for finding in self._health.end()]


_ACCOUNTS: WeakKeyDictionary[Run, Account] = WeakKeyDictionary()
_TAKING = threading.Lock()


def account(run: Run, *, is_over: bool) -> Account:
    """The account of ``run`` with all that it has logged by now. Raises ``RunError`` where that cannot be read."""
    lines = run.metrics()
    with _TAKING:
        found = _ACCOUNTS.setdefault(run, Account())
        found.take(run, lines, is_over=is_over)
        return found
