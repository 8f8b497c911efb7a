"""The file that says that an environment is complete, and how it was made."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from agentrl.environments.places import RECORD

__all__ = ["Record", "read_record", "write_record"]


@dataclass(frozen=True, slots=True)
class Record:
    """How an environment was made."""

    python_version: str
    interpreter: str | None
    """The interpreter that was asked for; ``None`` for the one that ran agentrl."""
    sources: tuple[str, ...]
    """The sources that were asked for, folders as absolute paths; none where the name alone decided."""
    editable: bool
    created: str
    """When, in ISO 8601."""


def read_record(folder: Path) -> Record | None:
    """The record in ``folder``, or ``None`` where there is none that can be read."""
    import json

    try:
        written = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        # A later version may write more than this one knows.
        known = {field.name: written[field.name] for field in fields(Record)}
        return Record(**{**known, "sources": tuple(map(str, known["sources"]))})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_record(folder: Path, record: Record) -> None:
    """Write the record whole or not at all. Raises ``OSError``."""
    import json

    aside = folder / f".{RECORD}.part"
    with aside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record), indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / RECORD)
