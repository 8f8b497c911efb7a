"""Every key of the configuration and of the parts that it may name, read from source without importing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from agentrl.environments.environment import environments
from agentrl.plugins.declared import Declared, Key, declared, fields_of
from agentrl.plugins.entries import Entry
from agentrl.plugins.kinds import KINDS
from agentrl.plugins.manager import Plugins
from agentrl.plugins.references import FileReference, ModuleReference, dotted_reference, parse_reference
from agentrl.plugins.source import Definition, Sources
from agentrl.tasks.loading import reader_name

__all__ = ["Catalogue", "Part", "agents_elsewhere", "described"]

_MODELS = "agentrl.config.models"
_TASKS = "tasks"
_KWARGS = "agent.kwargs"


@dataclass(frozen=True, slots=True)
class Part:
    """What a key selects by name."""

    key: str
    kind: str
    name: str | None
    """The default name; ``None`` where nothing is selected by default."""
    prefix: str = ""
    """What the names of this key begin with: those of an algorithm's parts, with their slot."""

    @property
    def below(self) -> str:
        """Where the keys of what is named stand."""
        return _KWARGS if self.kind == "agents" else self.key


def described(entry: Entry, sources: Sources) -> Declared:
    """What an installed name is, and the keys that it takes; a model takes none, whatever makes its folder."""
    return _of(entry, sources) or Declared("", ())


def _of(entry: Entry, sources: Sources) -> Declared | None:
    found = declared(entry.target, entry.kind, sources)
    return replace(found, keys=()) if found is not None and entry.kind == "models" else found


class Catalogue:
    """The keys of this version, and of what is installed beside it."""

    def __init__(self, plugins: Plugins, elsewhere: tuple[tuple[Entry, Sources], ...] = ()) -> None:
        """``elsewhere`` holds the names that other interpreters have, each with where its source is."""
        self._plugins = plugins
        self._elsewhere = elsewhere
        self._sources = Sources()
        self._of_parts: dict[tuple[Part, str | None], list[Key]] = {}

    def all_keys(self) -> tuple[Key, ...]:
        """Every key of the configuration by its dotted name, sections left out."""
        return self._keys

    @cached_property
    def _keys(self) -> tuple[Key, ...]:
        root = self._sources.find(_MODELS, "Config")
        return () if root is None else tuple(self._below(root, ""))

    def parts(self) -> Iterator[Part]:
        """The keys that select a part."""
        for key in self.all_keys():
            if (kind := _kind_of(key.name)) is not None:
                selects_none = key.default in (None, "null") or key.type.startswith("list")
                default = None if selects_none else key.default
                yield Part(key.name, kind, default)

    def names(self, part: Part) -> list[str]:
        """The registered names that a part may have, without what they all begin with."""
        entries = [*self._plugins.entries(part.kind), *(each for each, _ in self._elsewhere if each.kind == part.kind)]
        names = {entry.name for entry in entries}
        return sorted(name.removeprefix(part.prefix) for name in names if name.startswith(part.prefix))

    def declared(self, part: Part, name: str | None = None) -> Declared | None:
        """What ``part`` is and takes where it has ``name``, its default unless given; ``None`` where nobody says."""
        name = part.name if name is None else name
        if name is None:
            return None
        if part.kind == _TASKS and name not in self.names(part) and (kind := reader_name(name)) is not None:
            read = self.declared(part, kind)
            return read and replace(read, keys=tuple(key for key in read.keys if key.name != "path"))
        reference = parse_reference(name)
        if isinstance(reference, FileReference):
            here = Sources([str(reference.path.parent.absolute())])
            return declared(f"{reference.path.stem}:{reference.attribute or ''}", part.kind, here)
        if isinstance(reference, ModuleReference):
            return declared(name, part.kind, self._sources)
        qualified = name if name.startswith(part.prefix) else f"{part.prefix}{name}"
        for entry in self._plugins.entries(part.kind):
            if entry.is_called(qualified):
                return _of(entry, self._sources)
        found = [(entry, at) for entry, at in self._elsewhere if entry.kind == part.kind and entry.is_called(name)]
        if found:
            return _of(*found[0])
        dotted = dotted_reference(name)
        return None if dotted is None else declared(str(dotted), part.kind, self._sources)

    def keys_of(self, part: Part, name: str | None = None) -> list[Key]:
        """The keys of a part by their dotted names."""
        if (part, name) not in self._of_parts:
            found = self.declared(part, name)
            keys = () if found is None else found.keys
            self._of_parts[part, name] = [replace(key, name=f"{part.below}.{key.name}") for key in keys]
        return self._of_parts[part, name]

    def slots(self, part: Part, name: str | None = None) -> Iterator[Part]:
        """The parts that a part itself consists of, as an algorithm does."""
        if part.kind != "algorithms":
            return
        for key in self.keys_of(part, name):
            if key.short:
                yield Part(key.name, "parts", key.default, prefix=f"{key.name.rpartition('.')[2]}.")

    def all_parts(self, chosen: Mapping[str, str]) -> Iterator[tuple[Part, str | None]]:
        """Every part and the parts of those, each with its name: that in ``chosen`` by its key, or the default."""
        for part in self.parts():
            yield part, chosen.get(part.key)
            yield from ((slot, chosen.get(slot.key)) for slot in self.slots(part, chosen.get(part.key)))

    def _below(self, section: Definition, prefix: str) -> Iterator[Key]:
        for key in fields_of(section, self._sources):
            named = replace(key, name=f"{prefix}{key.name}")
            if key.section is None or key.short:
                yield named
            if key.section is not None and not key.type.startswith("list"):
                below = self._below(key.section, f"{named.name}.")
                default = key.default if key.short and key.default != "null" else None
                yield from (replace(each, default=each.default or default) for each in below)


def _kind_of(key: str) -> str | None:
    """The kind of what a key names; tasks are named by the two keys of their section."""
    holder, _, _ = key.rpartition(".")
    if holder == _TASKS:
        return _TASKS
    return next((name for name, kind in KINDS.items() if kind.key == key), None)


def agents_elsewhere() -> tuple[tuple[Entry, Sources], ...]:
    """Every agent that is installed in an environment that works."""
    return tuple(
        (entry, Sources(known.site_packages))
        for known in environments()
        if known.fault is None
        for entry in known.entries("agents")
    )
