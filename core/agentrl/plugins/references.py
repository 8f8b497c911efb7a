"""References: how a configuration or a command line says which object it means.

``name`` and ``dist/name`` are registered names; ``pkg.mod:Obj`` is an attribute of a module that can be
imported from here, the current folder included, after what is installed, and ``folder/pkg.mod:Obj`` one that
is imported from that folder; ``file.py:Obj`` is one of a file, and ``file.py`` the only object in it that fits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FileReference", "ModuleReference", "NameReference", "Reference", "parse_reference"]


@dataclass(frozen=True, slots=True)
class NameReference:
    """A registered name, or ``dist/name``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class ModuleReference:
    """An attribute of a module."""

    module: str
    attribute: str
    folder: Path | None = None
    """Where it is imported from; ``None`` for the current folder and whatever is installed."""

    def __str__(self) -> str:
        return f"{self.folder / self.module if self.folder else self.module}:{self.attribute}"


@dataclass(frozen=True, slots=True)
class FileReference:
    """An attribute of a Python file; without one, whatever in the file fits."""

    path: Path
    attribute: str | None

    def __str__(self) -> str:
        return f"{self.path}:{self.attribute}" if self.attribute else str(self.path)


Reference = NameReference | ModuleReference | FileReference


def parse_reference(text: str) -> Reference:
    """What ``text`` refers to, by its form alone."""
    if text.endswith(".py"):
        return FileReference(Path(os.path.expanduser(text)), None)
    head, colon, attribute = text.rpartition(":")
    if head.endswith(".py"):
        return FileReference(Path(os.path.expanduser(head)), attribute or None)
    if colon:
        folder, slash, module = head.rpartition("/")
        return ModuleReference(module, attribute, Path(os.path.expanduser(folder or "/")) if slash else None)
    return NameReference(text)
