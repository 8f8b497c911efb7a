"""A reward that says what it is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from agentrl.agents.number import as_number
from agentrl.errors import shown

__all__ = ["Reward", "parts_of", "sums_of_parts"]


class Reward(float):
    """A number that trains, and named parts beside it that are logged and stored.

    ``Reward(0.7, format=1.0, correct=0.4)`` is 0.7 wherever a number is wanted. Its parts do not train: the mean of
    each is among the metrics of a step as ``reward/parts/format``, and each episode is stored with its own. Raises
    ``TypeError`` for a value or a part that is no real number, and ``ValueError`` for a part that is not finite.
    """

    __slots__ = ("parts",)

    parts: Mapping[str, float]

    def __new__(cls, value: Any, /, **parts: Any) -> Reward:
        number = as_number(value)
        if number is None:
            raise TypeError(f"a reward is a number, not {shown(value)}")
        made = super().__new__(cls, number)
        made.parts = MappingProxyType({name: _part(name, part) for name, part in parts.items()})
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (float(self), dict(self.parts))

    def __repr__(self) -> str:
        return f"Reward({', '.join([float.__repr__(self), *(f'{name}={part}' for name, part in self.parts.items())])})"


def parts_of(value: object) -> Mapping[str, float]:
    """The parts of a reward; none for a plain number."""
    return value.parts if isinstance(value, Reward) else {}


def sums_of_parts(values: Iterable[object]) -> Mapping[str, float]:
    """The parts of several rewards, those of one name added up."""
    sums: dict[str, float] = {}
    for value in values:
        for name, part in parts_of(value).items():
            sums[name] = sums.get(name, 0.0) + part
    return sums


def _part(name: str, value: Any) -> float:
    number = as_number(value)
    if number is None:
        raise TypeError(f"part {name!r} of a reward is a number, not {shown(value)}")
    if not math.isfinite(number):
        raise ValueError(f"part {name!r} of a reward is a finite number, not {number}")
    return number


def _made(value: float, parts: Mapping[str, float]) -> Reward:
    return Reward(value, **parts)
