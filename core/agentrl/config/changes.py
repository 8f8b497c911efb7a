"""Changes: the keys in which two configurations of one run differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.config.models import Config
from agentrl.config.paths import to_folder
from agentrl.errors import ConfigError, shortened

__all__ = ["Change", "changes", "check_named"]

_OF_THE_FOLDER = ("run.name", "run.dir")
"""Keys that say where the run is, which its folder says itself."""


@dataclass(frozen=True, slots=True)
class Change:
    """A key whose value has changed."""

    key: str
    before: Any
    """Its value before, as plain JSON; ``None`` also where there was no such key."""
    after: Any

    def __str__(self) -> str:
        return f"{self.key}={_shown(self.after)} (was {_shown(self.before)})"


def changes(before: Config, after: Config, folder: Path) -> list[Change]:
    """The changes from ``before`` to ``after``, two configurations of the run in ``folder``, sorted by key.

    Paths are compared as they are seen from the folder. The run's name and place are left out.
    """
    old, new = (to_folder(config.model_dump(mode="json"), folder) for config in (before, after))
    return [change for change in _changes("", old, new) if change.key not in _OF_THE_FOLDER]


def _changes(key: str, old: Any, new: Any) -> Iterator[Change]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted(old.keys() | new.keys()):
            yield from _changes(f"{key}.{name}" if key else name, old.get(name), new.get(name))
    elif old != new:
        yield Change(key, old, new)


def check_named(changed: Iterable[Change], named: Mapping[str, str]) -> None:
    """Raise ``ConfigError`` for changes that the command line does not name.

    ``named`` says where the value of each key was written, as ``Resolved.provenance`` does.
    """
    unnamed = [each for each in changed if not _is_named(each.key, named)]
    if unnamed:
        keys = ", ".join(f"{each}, from {named.get(each.key, 'default')}" for each in unnamed)
        raise ConfigError(
            f"the run was started with another config: {keys}",
            fix="name a key on the command line to change it (KEY=VALUE), or resume the run without --config and "
            "without AGENTRL_ variables",
        )


def _is_named(key: str, named: Mapping[str, str]) -> bool:
    """Whether the command line wrote ``key``, or the part that it belongs to or that it was."""
    return any(
        place == "command line" and (key == other or key.startswith(f"{other}.") or _is_beside(key, other))
        for other, place in named.items()
    )


def _is_beside(key: str, other: str) -> bool:
    """Whether ``key`` belongs to the part that ``other`` names: with another part its keys go."""
    part, _, name = other.rpartition(".")
    return name in ("name", "type") and key.startswith(f"{part}.")


def _shown(value: Any) -> str:
    return shortened(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 80)
