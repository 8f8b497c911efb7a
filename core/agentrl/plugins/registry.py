"""Names that are known only at run time, as ``agentrl_register`` hooks add them."""

from __future__ import annotations

from agentrl.plugins.entries import Distribution, Entry

__all__ = ["Registry"]


class Registry:
    """What ``agentrl_register`` is given: it collects the names that one plugin adds."""

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution
        self._entries: list[Entry] = []

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What has been added."""
        return tuple(self._entries)

    def add(self, kind: str, name: str, target: object) -> None:
        """Add ``name`` to ``kind`` (``agents``, ``tasks``, …).

        ``target`` is the object itself, or ``"pkg.mod:Obj"``, which is imported when the name is used.
        """
        if isinstance(target, str):
            self._entries.append(Entry(kind, name, target, self._distribution))
        else:
            self._entries.append(Entry(kind, name, _described(target), self._distribution, target))


def _described(target: object) -> str:
    """Where an object came from, as an entry point would write it."""
    named = target if hasattr(target, "__qualname__") else type(target)
    return f"{named.__module__}:{getattr(named, '__qualname__', '')}"
