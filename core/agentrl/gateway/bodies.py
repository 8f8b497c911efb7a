"""The bodies of a session's requests, each message kept once.

An agent sends its whole history with every call. Kept as they come, the requests of a conversation would grow with the
square of its length.
"""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Bodies", "Body"]


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


class Body(Mapping[str, Any]):
    """A request's body, plain JSON; its lists are put together when they are asked for."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __getitem__(self, name: str) -> Any:
        value = self._fields[name]
        return value.items() if isinstance(value, _Link) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        """Copies, and what goes to another process, are plain."""
        return dict, (dict(self),)


class Bodies:
    """Bodies that share what they have in common. Not thread-safe: its session serialises access."""

    def __init__(self) -> None:
        self._links: dict[tuple[_Link | None, bytes], _Link] = {}
        self._items: dict[bytes, Mapping[str, Any]] = {}

    def keep(self, body: Mapping[str, Any]) -> Body:
        """``body``, to be kept as long as the session's record; nobody may change it any more."""
        return Body({name: self._kept(value) for name, value in body.items()})

    def _kept(self, value: Any) -> Any:
        if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
            return value
        link: _Link | None = None
        for item in value:
            # By the exact value: 1, 1.0 and true are equal to Python, and so would one be kept for the other.
            digest = hashlib.blake2b(marshal.dumps(item, 2), digest_size=16).digest()
            known = self._links.get((link, digest))
            if known is None:
                known = self._links[link, digest] = _Link(link, self._items.setdefault(digest, item))
            link = known
        return link
