"""What the ``wandb`` package has written offline, read back as ``wandb sync`` would."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

_HEADER, _BLOCK, _ENTRY = 7, 32768, 7
_WHOLE, _LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file, which is a log in the format of LevelDB."""
    data, at, parts = path.read_bytes(), _HEADER, b""
    while at < len(data):
        if (left := _BLOCK - at % _BLOCK) < _ENTRY:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + _ENTRY + size > len(data):
            return  # It is being written.
        parts += data[at + _ENTRY : at + _ENTRY + size]
        at += _ENTRY + size
        if kind in (_WHOLE, _LAST):
            record = pb.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def sessions(folder: Path) -> list[Path]:
    """The files of the run in the run folder ``folder``, one a session, in the order in which they are synced.

    They are waited for: wandb's own process writes the last of them after the run has ended.
    """
    files = [*folder.glob("wandb/offline-run-*/run-*.wandb")]
    until = time.monotonic() + 60
    while not all(any(record.WhichOneof("record_type") == "exit" for record in records(file)) for file in files):
        assert time.monotonic() < until, files
        time.sleep(0.05)
    return sorted(files, key=lambda file: run_of(file).start_time.ToNanoseconds())


def history(path: Path) -> list[dict[str, Any]]:
    """The rows that a session has logged."""
    return [_values(record.history.item) for record in records(path) if record.WhichOneof("record_type") == "history"]


def run_of(path: Path) -> Any:
    """The run as a session has begun it."""
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")


def config_of(path: Path) -> dict[str, Any]:
    """The config that a session has sent."""
    return _values(run_of(path).config.update)


def summary_of(path: Path) -> dict[str, Any]:
    """The summary after a session."""
    found: dict[str, Any] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            found |= _values(record.summary.update)
    return found


def exit_code(path: Path) -> int:
    """How a session has ended."""
    return next(record.exit.exit_code for record in records(path) if record.WhichOneof("record_type") == "exit")


def table(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """The table that an entry of a row stands for."""
    return json.loads((path.parent / "files" / entry["path"]).read_text())


def _values(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *keys, last = item.nested_key or [item.key]
        place = found
        for key in keys:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found
