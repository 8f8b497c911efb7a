"""Which episodes a table shows, as the fields of an address: what a reader filters by can be sent as a link."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast, get_args
from urllib.parse import urlencode

from agentrl.errors import ConfigError, Side, near_matches, shown
from agentrl.rollout.contract import Fate, Outcome, Phase
from agentrl.runs.contract import EpisodeFilter, SortKey
from agentrl.runs.queries import phrases

__all__ = ["PAGE", "PRESETS", "EpisodeQuery", "WrongQuestion", "address", "asked", "phase_of", "whole"]

PAGE = 50
"""Rows of a table that are shown at once."""

PRESETS: Mapping[str, Mapping[str, str]] = {
    "The newest": {},
    "The worst": {"sort": "reward"},
    "The best": {"sort": "reward", "descending": "1"},
    "The most surprising": {"sort": "surprise", "descending": "1"},
}
"""What one looks at first, as fields of the address."""

_DIRECTION = "descending"


class WrongQuestion(ConfigError):
    """A field after the ``?`` of an address has a value that it cannot have, or there is no such field."""


@contextmanager
def asked() -> Iterator[None]:
    """Within it, fields after the ``?`` of an address are read: a ``ConfigError`` becomes a ``WrongQuestion``."""
    try:
        yield
    except ConfigError as error:
        raise WrongQuestion(error.message, fix=error.fix) from error


def whole(name: str, given: str) -> int:
    """A whole number in the address. Raises ``ConfigError`` for anything else, and where it does not fit a database."""
    try:
        value = int(given)
    except ValueError:
        value = 2**63
    if not -(2**63) <= value < 2**63:
        raise ConfigError(f"{name}={shown(given, 40)} is no whole number", fix=f"write it as {name}=3")
    return value


def address(fields: Mapping[str, object]) -> str:
    """The part of an address after its path that holds ``fields``, without those that are ``None`` or empty."""
    told = {name: value for name, value in fields.items() if value is not None and value != ""}
    return f"?{urlencode(told, errors='backslashreplace')}" if told else ""


def _number(name: str, given: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ConfigError(f"{name}={shown(given, 40)} is no number", fix=f"write it as {name}=0.5")
    return value


def _text(name: str, given: str) -> str:
    return given


def _searched(name: str, given: str) -> str:
    phrases(given)
    return given


def _one_of(choices: tuple[str, ...]) -> Callable[[str, str], str]:
    def read(name: str, given: str) -> str:
        if given not in choices:
            raise ConfigError(f"{name}={shown(given, 40)} is unknown", fix=near_matches(given, choices))
        return given

    return read


def phase_of(given: str) -> Phase:
    """The phase in an address. Raises ``ConfigError`` for what is none."""
    return cast(Phase, _one_of(get_args(Phase))("phase", given))


_READ: Mapping[str, Callable[[str, str], Any]] = {
    "phase": _one_of(get_args(Phase)),
    "step": whole,
    "group": whole,
    "task": whole,
    "version": whole,
    "outcome": _one_of(get_args(Outcome)),
    "side": _one_of(get_args(Side)),
    "fate": _one_of(get_args(Fate)),
    "tool": _text,
    "min_reward": _number,
    "max_reward": _number,
    "text": _searched,
}
_SORTS: tuple[SortKey, ...] = get_args(SortKey)


@dataclass(frozen=True, slots=True)
class EpisodeQuery:
    """Filters, an order, and where in it the page begins."""

    filters: EpisodeFilter = field(default_factory=EpisodeFilter)
    sort: SortKey = "committed"
    descending: bool = True
    offset: int = 0

    @classmethod
    @asked()
    def read(cls, given: Mapping[str, str], others: Iterable[str] = ()) -> EpisodeQuery:
        """The query of an address, which may have the fields ``others`` beside its own. Those without a value do not
        count.

        Raises ``WrongQuestion`` for a value that its field cannot have, and for any other field: one that is misspelled
        would show every episode.
        """
        known = (*_READ, "sort", _DIRECTION, "offset", *others)
        if unknown := [name for name in given if name not in known]:
            raise ConfigError(f"there is no field {shown(unknown[0], 40)} here", fix=near_matches(unknown[0], known))
        values = {name: value.strip() for name, value in given.items() if value.strip()}
        sort = _one_of(_SORTS)("sort", values.get("sort", "committed"))
        default = "1" if sort == "committed" else "0"
        return cls(
            cast(EpisodeFilter, {name: _READ[name](name, values[name]) for name in _READ if name in values}),
            cast(SortKey, sort),
            _one_of(("0", "1"))(_DIRECTION, values.get(_DIRECTION, default)) == "1",
            max(0, whole("offset", values.get("offset", "0"))),
        )

    def fields(self) -> dict[str, str]:
        """The fields of the address, without those that say what is so anyway, and without the offset."""
        told = {name: str(value) for name, value in self.filters.items()}
        if self.sort != "committed":
            told["sort"] = self.sort
        if self.descending != (self.sort == "committed"):
            told[_DIRECTION] = str(int(self.descending))
        return told

    def address(self, **changed: object) -> str:
        """The part of an address after its path, with some fields ``changed``; ``None`` leaves one out."""
        offset = {"offset": str(self.offset)} if self.offset else {}
        told = {**self.fields(), **offset, **changed}
        return address(told)

    def sorted_by(self, sort: SortKey) -> str:
        """The address of the same episodes ordered by ``sort``, the other way round where they are ordered so already.

        Rewards begin with the lowest, and what else there is with the highest.
        """
        turned = not self.descending if sort == self.sort else sort not in ("reward", "phase", "outcome", "task")
        changed = EpisodeQuery(self.filters, sort, turned)
        return changed.address()
