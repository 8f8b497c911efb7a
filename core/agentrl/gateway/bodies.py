"""The bodies of a session's requests, stored once.

An agent sends its whole history with every call. ``Bodies`` keeps equal messages once, so that what is stored grows
with the length of a conversation and not with its square.
"""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

__all__ = ["Bodies", "Body", "in_common"]

_REMEMBERED = 32
"""How many of the last lists are remembered whole; an agent has fewer conversations at once."""
_FIRSTS = 4
"""How many of the last first items are remembered: that of each kind of conversation."""
_LONG = 8
"""How many items a list has that is worth remembering whole."""


def in_common(known: Sequence[Any], given: Sequence[Any]) -> int:
    """How many items two lists have in common at their start. Whole lists are compared first, for speed."""
    if known == given[: len(known)]:
        return len(known)
    return next((n for n, (one, other) in enumerate(zip(known, given, strict=False)) if one != other), len(given))


@dataclass(frozen=True, slots=True, eq=False)
class _Link:
    """The last item of a list, and the list before it: lists that begin alike share their beginning."""

    before: _Link | None
    item: Mapping[str, Any]

    def items(self) -> list[Mapping[str, Any]]:
        """The whole list."""
        items: list[Mapping[str, Any]] = []
        link: _Link | None = self
        while link is not None:
            items.append(link.item)
            link = link.before
        items.reverse()
        return items


class _List(NamedTuple):
    """A list whose first item stands apart: where that is another one each time, what follows it is still shared."""

    first: Mapping[str, Any]
    rest: _Link | None

    def items(self) -> list[Mapping[str, Any]]:
        """The whole list."""
        return [self.first, *(self.rest.items() if self.rest is not None else ())]


class Body(Mapping[str, Any]):
    """A request's body, plain JSON, whose lists of objects are assembled when they are read."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __getitem__(self, name: str) -> Any:
        value = self._fields[name]
        return value.items() if isinstance(value, _List) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        """Copies and pickles are plain dicts."""
        return dict, (dict(self),)


class _Kept(NamedTuple):
    """What follows the first item of a list of a recent body, and its links."""

    items: list[Mapping[str, Any]]
    links: list[_Link]
    exact: Mapping[int, bytes]
    """Digests of the items that hold more than texts, by index, the smallest first."""

    def repeated(self, value: list[Any]) -> int:
        """How many items at the start of ``value`` are the same as here."""
        common = in_common(self.items, value)
        for index, exact in self.exact.items():
            if index >= common:
                break
            if value[index] is not self.items[index] and _digest(value[index]) != exact:
                return index
        return common


class Bodies:
    """Request bodies that share equal messages and tools. Not thread-safe: its session serialises access."""

    def __init__(self) -> None:
        self._links: dict[tuple[_Link | None, bytes], _Link] = {}
        self._items: dict[bytes, Mapping[str, Any]] = {}
        self._recent: list[_Kept] = []
        self._firsts: list[tuple[Mapping[str, Any], bytes | None]] = []
        """The first items of the last lists, with the digests of those that hold more than texts."""

    def recall(self, body: dict[str, Any]) -> dict[str, Any]:
        """``body`` with the items that its lists repeat of recent ones replaced by those."""
        for value in body.values():
            if type(value) is list and value and type(value[0]) is dict:
                value[0] = self._recalled(value[0])
                recent, common = self._nearest(value[1:])
                if recent is not None:
                    value[1 : common + 1] = recent.items[:common]
        return body

    def _recalled(self, item: dict[str, Any]) -> Mapping[str, Any]:
        equal = ((first, told) for first, told in self._firsts if first == item)
        return next((first for first, told in equal if told is None or told == _digest(item)), item)

    def keep(self, body: Mapping[str, Any]) -> Body:
        """``body`` as it is to be kept. The caller must not change it, or anything in it, afterwards."""
        return Body({name: self._kept(value) if type(value) is list else value for name, value in body.items()})

    def _kept(self, value: list[Any]) -> Any:
        if not value or type(value[0]) is not dict:
            return value
        rest = value[1:]
        recent, common = self._nearest(rest)
        if any(type(item) is not dict for item in rest[common:]):
            return value
        return _List(self._first(value[0]), self._linked(rest, recent, common))

    def _first(self, item: dict[str, Any]) -> Mapping[str, Any]:
        if any(item is first for first, _ in self._firsts):
            return item
        digest = _digest(item)
        kept = self._items.setdefault(digest, item)
        self._firsts = [(kept, None if _is_text(kept) else digest), *self._firsts[: _FIRSTS - 1]]
        return kept

    def _linked(self, value: list[Any], recent: _Kept | None, common: int) -> _Link | None:
        links = [] if recent is None else recent.links[:common]
        link = links[-1] if links else None
        for item in value[common:]:
            digest = _digest(item)
            known = self._links.get((link, digest))
            if known is None:
                known = self._links[link, digest] = _Link(link, self._items.setdefault(digest, item))
            links.append(known)
            link = known
        if len(value) >= _LONG and (recent is None or common < len(value)):
            self._remember(recent, common, links)
        return link

    def _nearest(self, value: list[Any]) -> tuple[_Kept | None, int]:
        """The recent list that begins most like ``value``, and how many items can be taken from it."""
        nearest, most = None, 0
        for each in self._recent:
            is_longer = most < min(len(each.items), len(value)) and each.items[most] == value[most]
            if is_longer and (common := each.repeated(value)) > most:
                nearest, most = each, common
        return nearest, most

    def _remember(self, recent: _Kept | None, common: int, links: list[_Link]) -> None:
        """Keep a new list in the place of ``recent``, all of which it may begin with."""
        items = recent.items[:common] if recent is not None else []
        items += [link.item for link in links[common:]]
        exact = {n: told for n, told in recent.exact.items() if n < common} if recent is not None else {}
        exact |= {n: _digest(items[n]) for n in range(common, len(items)) if not _is_text(items[n])}
        over = recent if recent is not None and common == len(recent.items) else None
        self._recent = [each for each in self._recent if each is not over][1 - _REMEMBERED :]
        self._recent.append(_Kept(items, links, exact))


def _is_text(value: object) -> bool:
    """Whether a JSON value holds texts alone: to Python other values are equal that are not the same, as 1 and true."""
    if isinstance(value, dict):
        return all(map(_is_text, value.values()))
    return all(map(_is_text, value)) if isinstance(value, list) else value is None or isinstance(value, str)


def _digest(item: Mapping[str, Any]) -> bytes:
    """A digest that is equal for the same JSON value alone."""
    return hashlib.blake2b(_exact(item), digest_size=16).digest()


def _exact(item: Mapping[str, Any]) -> bytes:
    """Bytes that are equal for the same JSON value alone: 1, 1.0 and true, which are equal to Python, differ in them.

    orjson writes them in a fraction of the time of ``marshal``; but it writes NaN as null, and not every text.
    """
    try:
        written = orjson.dumps(item)
    except TypeError:
        return marshal.dumps(dict(item), 2)
    return marshal.dumps(dict(item), 2) if b"null" in written else written
