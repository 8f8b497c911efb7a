"""Generated arithmetic: no task repeats, every answer is exact, and the tasks to evaluate on are never trained on.

The problems over all pairs of operands fall into two parts. Which part a pair belongs to follows from the pair alone
(``is_held_out``), so the two parts stay apart whatever the sizes, seeds and operators of the sets that draw from them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from itertools import islice
from random import Random
from typing import ClassVar, Literal

from pydantic import Field

from agentrl.config.section import Section
from agentrl.errors import ConfigError
from agentrl.tasks.contract import Task

__all__ = ["Arithmetic", "HeldOutArithmetic", "is_held_out", "problem"]

HELD_OUT_SHARE = 1 / 8
"""Share of all problems that are kept for evaluation."""

_OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def problem(left: int, symbol: str, right: int) -> Task:
    """The task that asks for ``left symbol right``: ``{"question": "What is 2 + 3?", "answer": "5"}``.

    ``symbol`` is ``+``, ``-`` or ``*``.
    """
    return {"question": f"What is {left} {symbol} {right}?", "answer": str(_OPERATORS[symbol](left, right))}


def is_held_out(operands: Iterable[int]) -> bool:
    """Whether a problem over these operands is for evaluation only. Their order does not matter."""
    digest = sha256(" ".join(map(str, sorted(operands))).encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


class Arithmetic:
    """Problems to train on. None of their pairs of operands occurs in `arithmetic-heldout`, whatever the keys."""

    class Settings(Section):
        """Keys of `arithmetic` and `arithmetic-heldout`."""

        digits: int = Field(2, ge=1, le=9)
        """Digits of each operand."""
        operators: list[Literal["+", "-", "*"]] = Field(["+"], min_length=1)
        """The operators that problems ask for, in about equal shares."""
        size: int = Field(512, ge=1)
        """The number of tasks."""
        seed: int = 0
        """Another seed draws other tasks from the same part."""

    name: ClassVar[str] = "arithmetic"
    held_out: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        """Raises ``ConfigError`` where there are fewer than ``size`` different problems of that many digits."""
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
        """Every problem of this part once, in an order that the seed decides."""
        low = 0 if settings.digits == 1 else 10 ** (settings.digits - 1)
        count = 10**settings.digits - low
        symbols = settings.operators
        for index in _shuffled(count * count * len(symbols), Random(f"arithmetic {settings.seed}")):
            pair, symbol = divmod(index, len(symbols))
            left, right = (low + offset for offset in divmod(pair, count))
            if is_held_out((left, right)) == self.held_out:
                yield left, symbols[symbol], right


class HeldOutArithmetic(Arithmetic):
    """Problems to evaluate on, an eighth of all. Training on `arithmetic` never sees them."""

    name = "arithmetic-heldout"
    held_out = True


def _shuffled(count: int, random: Random) -> Iterator[int]:
    """A random order of ``range(count)``: a Fisher-Yates shuffle that stores only what it has moved."""
    moved: dict[int, int] = {}
    for last in range(count - 1, -1, -1):
        pick = random.randint(0, last)
        yield moved.get(pick, pick)
        moved[pick] = moved.pop(last, last)
