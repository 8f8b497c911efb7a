"""How a host proves that it sees what this machine sees: a file with a word that nobody can guess, or equal content.

Only the standard library is used here, since hosts run it before anything else of ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Mark", "faults", "marking"]

_HEAD = 1 << 16
"""Bytes of each small file of a folder that count."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a host is to find at ``path``."""

    key: str
    """The key of the configuration that the path stands at."""
    path: str
    file: str | None
    """The name of a file that was just written into the folder; ``None`` where equal content is enough."""
    digest: str
    """What the file holds, or the digest of the content."""


@contextlib.contextmanager
def marking(written: Mapping[str, Path], read: Mapping[str, Path]) -> Iterator[list[Mark]]:
    """Marks of the folders ``written`` to, which must be the same everywhere, and of what is only ``read``.

    Both are by configuration key. A folder that does not exist yet is made. The files are gone at the end.
    """
    marks: list[Mark] = []
    with contextlib.ExitStack() as stack:
        for key, folder in written.items():
            folder.mkdir(parents=True, exist_ok=True)
            word = secrets.token_hex(16)
            file = folder / f".agentrl-{secrets.token_hex(8)}"
            stack.callback(file.unlink, missing_ok=True)
            file.write_text(word)
            marks.append(Mark(key, str(folder.absolute()), file.name, word))
        for key, path in read.items():
            marks.append(Mark(key, str(path.absolute()), None, content_of(path)))
        yield marks


def faults(marks: list[Mark]) -> list[tuple[str, str, str]]:
    """Of each of ``marks`` that is not as it should be here: its key, its path and what is wrong."""
    return [(mark.key, mark.path, wrong) for mark in marks if (wrong := _fault(mark)) is not None]


def _fault(mark: Mark) -> str | None:
    path = Path(mark.path)
    if not path.exists():
        return "is not there"
    if mark.file is None:
        return None if content_of(path) == mark.digest else "is there, with other content"
    os.listdir(path)  # A network file system looks again then.
    try:
        return None if (path / mark.file).read_text() == mark.digest else "is there, and is another folder"
    except FileNotFoundError:
        return "is there, and is another folder"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def content_of(path: Path) -> str:
    """A digest of a file, or of the names and sizes of a folder's files and of the beginnings of those that are
    small."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.is_file())
    for file in files:
        if file.name.startswith("."):
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        if path.is_file() or size <= _HEAD:
            digest.update(file.read_bytes())
    return digest.hexdigest()
