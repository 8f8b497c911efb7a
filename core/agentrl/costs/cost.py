"""Cost: what a run, or a part of it, has taken, in time, requests, tokens and money, as one value that adds up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from agentrl.costs.contract import Role, Stage, Usage

__all__ = ["Cost"]

_PREFIX = "cost/"
_ELSEWHERE: Final[Mapping[str, str]] = {
    **{f"seconds/{name}": f"{name}/seconds" for name in ("rollout", "learner", "weights", "proof")},
    **{f"seconds/{name}": f"{name}/seconds" for name in ("evaluation", "checkpoint")},
    "tokens/trained": "learner/trained_tokens",
    "tokens/forest": "learner/computed_tokens",
}
"""Metrics that a line has in any case and that are part of what it cost, and their names in a ``Cost``."""
_REAL = ("seconds", "money")
_TOTAL = "money"
"""The sum of all money, which is told beside its parts and not added up."""
_STAGES: Final = ("rollout", "evaluation", "learner", "weights", "proof", "checkpoint")


@dataclass(frozen=True, slots=True)
class Cost:
    """Numbers by name; one that is missing is 0.

    ``seconds`` is wall-clock time, each moment counted once, and ``STAGE/seconds`` the time of a stage, where stages
    that overlap count each. ``STAGE/ROLE/FIELD`` is a field of the ``Usage`` of the models of a role, or their
    ``money``; ``machine/money`` is the money for the time. ``learner/trained_tokens`` and ``learner/computed_tokens``
    are what the learner did.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Cost) -> Cost:
        names = dict.fromkeys((*self.numbers, *other.numbers))
        return Cost({name: self.numbers.get(name, 0) + other.numbers.get(name, 0) for name in names})

    def __sub__(self, other: Cost) -> Cost:
        return self + Cost({name: -value for name, value in other.numbers.items()})

    @classmethod
    def of_usage(cls, stage: Stage, role: Role, usage: Usage, money: float | None = None) -> Cost:
        """What models of ``role`` have used in ``stage``, and the money for it where there are prices."""
        counted = {name: getattr(usage, name) for name in Usage.__slots__}
        numbers = {f"{stage}/{role}/{name}": value for name, value in counted.items() if value}
        if money is not None:
            numbers[f"{stage}/{role}/money"] = money
        return cls(numbers)

    @classmethod
    def of_metrics(cls, metrics: Mapping[str, float | None]) -> Cost:
        """What a line of ``metrics.jsonl`` says that it cost; nothing for one of a version that did not count."""
        found: dict[str, float] = {}
        for name, value in metrics.items():
            known = name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else _ELSEWHERE.get(name)
            if known is not None and known != _TOTAL and value is not None:
                found[known] = found.get(known, 0) + value
        return cls(found)

    def metrics(self) -> dict[str, float]:
        """Its numbers as a line of ``metrics.jsonl`` has them, such as ``cost/seconds`` and ``cost/machine/money``.

        ``cost/money`` is the sum of all money, which ``of_metrics`` passes over.
        """
        numbers = {f"{_PREFIX}{name}": value for name, value in self.numbers.items()}
        return numbers if self.money is None else numbers | {f"{_PREFIX}{_TOTAL}": self.money}

    def to_json(self, currency: str) -> dict[str, Any]:
        """Its numbers as nested JSON objects, a level for each part of their names; money with its ``currency``."""
        nested: dict[str, Any] = {}
        if self.money is not None:
            nested = {"currency": currency, _TOTAL: round(self.money, 9)}
        for name, value in sorted(self.numbers.items(), key=lambda each: (each[0].count("/"), each[0])):
            *path, last = name.split("/")
            inner = nested
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = round(value, 9) if last in _REAL else round(value)
        return nested

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cost:
        """What ``to_json`` wrote."""
        return cls({name: number for name, number in _flat(value) if name != _TOTAL})

    @property
    def seconds(self) -> float:
        """Wall-clock time, each moment counted once."""
        return self.numbers.get("seconds", 0.0)

    @property
    def money(self) -> float | None:
        """All of it; ``None`` where no price is known."""
        found = [value for name, value in self.numbers.items() if name.endswith("/money")]
        return sum(found) if found else None

    def stage_seconds(self) -> dict[str, float]:
        """The seconds of each stage that there was; stages that overlap count each."""
        return {name: held for name in _STAGES if (held := self.numbers.get(f"{name}/seconds"))}

    def usage(self, role: Role, stage: Stage | None = None) -> Usage:
        """What the models of ``role`` have used, in one stage or in all."""
        stages = get_args(Stage) if stage is None else (stage,)

        def total(name: str) -> float:
            return sum(self.numbers.get(f"{each}/{role}/{name}", 0) for each in stages)

        counts = {name: round(total(name)) for name in Usage.__slots__ if name != "seconds"}
        return Usage(**counts, seconds=total("seconds"))

    def money_of(self, role: Role | str) -> float:
        """The money for the models of a role; for ``machine`` that for the time."""
        if role == "machine":
            return self.numbers.get("machine/money", 0.0)
        return sum(self.numbers.get(f"{stage}/{role}/money", 0.0) for stage in get_args(Stage))

    def texts(self, currency: str = "") -> list[str]:
        """Lines that say it: money where there are prices, then time, then what each role has used."""
        lines = []
        if self.money is not None:
            parts = {name: self.money_of(name) for name in ("machine", *get_args(Role))}
            told = ", ".join(f"{name} {_amount(value)}" for name, value in parts.items() if value)
            lines.append(f"cost: {_amount(self.money)} {currency}{f' ({told})' if told else ''}")
        if seconds := self.stage_seconds():
            lines.append(f"time: {', '.join(f'{name} {_time(value)}' for name, value in seconds.items())}")
        for role in get_args(Role):
            usage = self.usage(role)
            if usage.requests:
                lines.append(f"{role}: {_usage_text(usage)}")
        return lines


def _flat(value: Mapping[str, Any], before: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, held in value.items():
        if isinstance(held, Mapping):
            found += _flat(held, f"{before}{name}/")
        elif isinstance(held, int | float):
            found.append((f"{before}{name}", held))
    return found


def _usage_text(usage: Usage) -> str:
    cached = f" ({usage.cached_tokens:,} of them cached or shared)" if usage.cached_tokens else ""
    unknown = f", {usage.unknown:,} of unknown usage" if usage.unknown else ""
    return (
        f"{usage.requests:,} request{'' if usage.requests == 1 else 's'}{unknown}, "
        f"{usage.prompt_tokens:,} prompt tokens{cached}, {usage.completion_tokens:,} completion tokens"
    )


def _amount(money: float) -> str:
    return f"{money:,.2f}" if money >= 100 else f"{money:.4g}"


def _time(seconds: float) -> str:
    unit, length = next((each for each in (("h", 3600), ("min", 60)) if seconds >= each[1]), ("s", 1))
    return f"{seconds / length:,.1f} {unit}"
