"""The meter of a run: what its models have used and what its time costs, cut into the lines of ``metrics.jsonl``.

A run has one, and whoever asks a model reports to it. Each line takes what came since the line before it, a line of an
evaluation only what is an evaluation's; so the lines and what came after the last one add up to the run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from agentrl.costs.contract import Role, Stage, Usage
from agentrl.costs.cost import Cost

if TYPE_CHECKING:
    from agentrl.config.prices import PricesSection, TokenPrice

__all__ = ["CostMeter", "price_of_usage"]

_MILLION = 1e6
_HOUR_S = 3600.0
_MANY = 1000
"""So many usages are added up at once."""
_OWN: Role = "policy"
"""The role whose models need no price: they run on the machine that is paid by the hour."""


class CostMeter:
    """Adds up what a run costs. Methods may be called from any thread."""

    def __init__(self, prices: PricesSection, clock: Callable[[], float] = time.monotonic) -> None:
        """The time of the run begins now."""
        self._prices = prices
        self._clock = clock
        self._began = clock()
        self._lock = threading.Lock()
        self._spent: deque[tuple[Stage, Role, str, Usage]] = deque()
        """What was used last, of which no account is made yet: that is left to when somebody asks."""
        self._open = Cost()
        """What was used before, and no line has taken yet."""
        self._undone = Cost()
        """What the run has spent that is in no line, because its line was taken back when the run was resumed."""
        self._lines = Cost()
        """What the lines have taken, those before the run was resumed included."""
        self._timed = 0.0
        """Seconds since ``began`` that lines have taken."""
        self._unpriced: set[tuple[Role, str]] = set()
        self._unused = set(prices.tokens)

    @property
    def currency(self) -> str:
        """That of all money."""
        return self._prices.currency

    def spend(self, stage: Stage, role: Role, model: str, usage: Usage) -> None:
        """Take what ``model`` has used; see ``Meter``."""
        self._spent.append((stage, role, model, usage))
        # Calls never wait for each other here: whoever finds the lock taken leaves its share to the next.
        if len(self._spent) >= _MANY and self._lock.acquire(blocking=False):
            try:
                self._fold()
            finally:
                self._lock.release()

    def take_up(self, spent: Cost, kept: Cost) -> None:
        """Go on from what the run had ``spent`` before it was resumed, of which ``kept`` is in the lines that it has.

        What is in none of them, such as that of steps which are repeated, is part of the next line.
        """
        with self._lock:
            self._lines, self._undone = kept, spent - kept

    def step(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics to add to those of a step: what it cost, with all that came since the line before it."""
        with self._lock:
            seconds = self._clock() - self._began - self._timed
            return self._line(metrics, seconds, of_evaluation=False)

    def evaluation(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics to add to those of an evaluation, which took ``seconds/evaluation`` of ``metrics``.

        Time that it shares with a step is the evaluation's.
        """
        with self._lock:
            since = self._clock() - self._began - self._timed
            seconds = min(metrics.get("seconds/evaluation", 0.0), since)
            return self._line(metrics, seconds, of_evaluation=True)

    def run(self, rest: Mapping[str, float] | None = None) -> Cost:
        """What the run has cost so far; ``rest`` are metrics that are in no line yet, such as seconds."""
        with self._lock:
            self._fold()
            time_left = self._time(self._clock() - self._began - self._timed)
            return self._lines + self._undone + self._open + time_left + Cost.of_metrics(rest or {})

    def gaps(self) -> list[str]:
        """What keeps the money from being all of it, and prices that nothing was found for, a sentence each."""
        with self._lock:
            self._fold()
            missing = [
                f"prices.tokens has no price for the {role} {model!r}: what it took is counted, and is not in the money"
                for role, model in sorted(self._unpriced)
            ]
            unused = [
                f"prices.tokens.{name} was not used: the run asked no model and no role of that name"
                for name in sorted(self._unused)
            ]
            return missing + unused

    def _fold(self) -> None:
        """Make account of what was used last. Called with the lock."""
        for _ in range(len(self._spent)):
            stage, role, model, usage = self._spent.popleft()
            self._open += Cost.of_usage(stage, role, usage, self._money(role, model, usage))

    def _line(self, metrics: Mapping[str, float], seconds: float, *, of_evaluation: bool) -> dict[str, float]:
        self._fold()
        parts: tuple[dict[str, float], dict[str, float]] = {}, {}
        for name, value in self._open.numbers.items():
            parts[name.startswith("evaluation/") == of_evaluation][name] = value
        left, taken = parts
        cost = self._time(seconds) + Cost(dict(sorted(taken.items()))) + self._undone
        self._open, self._undone = Cost(left), Cost()
        self._timed += seconds
        added = cost.metrics()
        self._lines += Cost.of_metrics({**metrics, **added})
        return added

    def _time(self, seconds: float) -> Cost:
        """What so many seconds of the machine cost."""
        prices = self._prices
        hour = (prices.machine_hour or 0.0) + prices.gpus * (prices.gpu_hour or 0.0)
        money = {"machine/money": hour * seconds / _HOUR_S} if prices.known else {}
        return Cost({"seconds": seconds, **money})

    def _money(self, role: Role, model: str, usage: Usage) -> float | None:
        if not self._prices.known:
            return None
        name = next((each for each in (model, role) if each in self._prices.tokens), None)
        if name is None:
            if role != _OWN:
                self._unpriced.add((role, model))
            return None
        self._unused.discard(name)
        return price_of_usage(usage, self._prices.tokens[name])


def price_of_usage(usage: Usage, price: TokenPrice) -> float:
    """The money for ``usage``, where ``price`` is that of a million tokens of each kind."""
    cached = price.prompt if price.cached is None else price.cached
    computed = usage.prompt_tokens - usage.cached_tokens
    return (
        computed * price.prompt + usage.cached_tokens * cached + usage.completion_tokens * price.completion
    ) / _MILLION
