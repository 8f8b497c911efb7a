"""Generated arithmetic: no task repeats, answers are exact, and what is held out is told by content."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from typing import ClassVar, Literal

from pydantic import Field

from agentrl.config.models import Section
from agentrl.errors import ConfigError
from agentrl.tasks.contract import Task
from agentrl.tasks.split import is_held_out

__all__ = ["Arithmetic", "HeldOutArithmetic", "problem"]

_OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def problem(left: int, symbol: str, right: int) -> Task:
    """The task that asks for ``left symbol right``."""
    return {"question": f"What is {left} {symbol} {right}?", "answer": str(_OPERATORS[symbol](left, right))}


class Arithmetic:
    """Problems to train on. No pair of operands is also in `arithmetic-heldout`, whatever the keys."""

    class Settings(Section):
        """Keys of `arithmetic` and `arithmetic-heldout`."""

        digits: int = Field(2, ge=1, le=9)
        """Digits of each operand."""
        operators: list[Literal["+", "-", "*"]] = Field(["+"], min_length=1)
        """What is asked for, in about equal shares."""
        size: int = Field(512, ge=1)
        """How many tasks."""
        seed: int = 0
        """Another seed draws other tasks, of the same part."""

    name: ClassVar[str] = "arithmetic"
    held_out: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self._tasks = [problem(*drawn) for drawn in islice(self._problems(settings), settings.size)]
        if len(self._tasks) < settings.size:
            raise ConfigError(
                f"{self.name} with digits={settings.digits} has {len(self._tasks)} tasks, not size={settings.size}",
                fix="lower size or raise digits",
            )

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int, /) -> Task:
        return self._tasks[index]

    def _problems(self, settings: Settings) -> Iterator[tuple[int, str, int]]:
        """Every distinct problem of this part, in an order that the seed decides."""
        low = 0 if settings.digits == 1 else 10 ** (settings.digits - 1)
        count = 10**settings.digits - low
        symbols = settings.operators
        for index in _shuffled(count * count * len(symbols), Random(f"arithmetic {settings.seed}")):
            pair, symbol = divmod(index, len(symbols))
            left, right = (low + place for place in divmod(pair, count))
            if is_held_out((left, right)) == self.held_out:
                yield left, symbols[symbol], right


class HeldOutArithmetic(Arithmetic):
    """Problems to evaluate on."""

    name = "arithmetic-heldout"
    held_out = True


def _shuffled(count: int, random: Random) -> Iterator[int]:
    """A random order of ``range(count)``: a Fisher-Yates shuffle that stores only what it has moved."""
    moved: dict[int, int] = {}
    for last in range(count - 1, -1, -1):
        pick = random.randint(0, last)
        yield moved.get(pick, pick)
        moved[pick] = moved.pop(last, last)
