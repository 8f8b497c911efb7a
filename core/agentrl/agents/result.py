"""What an agent's ``run`` returns: a reward, which may have named parts, rewards of single calls, or nothing."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from agentrl.errors import AgentError, near_matches, shown

__all__ = ["Reward", "as_number", "as_result", "parts_of", "sums_of_parts"]


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
    """The parts of a ``Reward`` by their names; empty for any other value."""
    return value.parts if isinstance(value, Reward) else {}


def sums_of_parts(values: Iterable[object]) -> Mapping[str, float]:
    """The parts of several rewards by their names, those of the same name added up."""
    sums: dict[str, float] = {}
    for value in values:
        for name, part in parts_of(value).items():
            sums[name] = sums.get(name, 0.0) + part
    return sums


def as_result(returned: Any, calls: Collection[str]) -> float | dict[str, float] | None:
    """What ``run`` returned as the episode's reward, as rewards by response id, or as ``None`` for rejected.

    ``calls`` are the response ids of the episode's completed calls. Raises ``AgentError`` for anything that the
    contract does not allow: a value that is no real number, a number that is not finite, an unknown response id.
    """
    if returned is None:
        return None
    if isinstance(returned, Mapping):
        rewards = {call: _finite(reward, f"for call {call!r}") for call, reward in _known(returned, calls).items()}
        # Credit adds some of them up along the tree: no such sum may be infinite.
        if not math.isfinite(sum(map(abs, rewards.values()))):
            raise AgentError("the agent returned rewards whose sum is infinite", fix="a reward is a finite number")
        return rewards
    return _finite(returned, "")


def as_number(value: Any) -> float | None:
    """``value`` as a float if it is a real number of any type, numpy's and bool included; else ``None``.

    A number that is too large for a float becomes an infinity, and a NaN of any kind a float's: the caller checks
    whether it is finite. Text, complex numbers, dates and durations are no real numbers.
    """
    if getattr(getattr(value, "dtype", None), "kind", None) == "m":  # numpy counts a timedelta among the integers.
        return None
    if isinstance(value, numbers.Real | Decimal):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf  # type: ignore[operator]  # Real has no order for mypy.
        except ValueError:  # Decimal's signalling NaN
            return math.nan
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        inner = value.item()  # numpy.bool_, and zero-dimensional arrays and tensors
        return None if getattr(inner, "shape", None) == () else as_number(inner)
    return None


def _known(rewards: Mapping[Any, Any], calls: Collection[str]) -> Mapping[str, Any]:
    if not rewards:
        raise AgentError("the agent returned no reward: {}", fix="return None to reject the episode")
    for call in rewards:
        if call not in calls:
            raise AgentError(
                f"the agent rewarded {call!r}, which is no response id of a call it completed",
                fix=near_matches(str(call), calls),
                fingerprint="the agent rewarded what is no response id of a call it completed",
            )
    return rewards


def _finite(value: Any, where: str) -> float:
    number = as_number(value)
    if number is None:
        raise AgentError(
            f"the agent returned {shown(value)} {where}".rstrip() + f", a {type(value).__name__}",
            fix="return a number, a dict from response id to number, or None; or set reward: to have an answer scored",
            fingerprint=f"the agent returned a {type(value).__name__}",
        )
    if not math.isfinite(number):
        raise AgentError(
            f"the agent returned {shown(value)} {where}".rstrip(),
            fix="a reward is a number that a float can hold",
            fingerprint="the agent returned a reward that is not finite",
        )
    return number


def _part(name: str, value: Any) -> float:
    number = as_number(value)
    if number is None:
        raise TypeError(f"part {name!r} of a reward is a number, not {shown(value)}")
    if not math.isfinite(number):
        raise ValueError(f"part {name!r} of a reward is a finite number, not {number}")
    return number


def _made(value: float, parts: Mapping[str, float]) -> Reward:
    return Reward(value, **parts)
