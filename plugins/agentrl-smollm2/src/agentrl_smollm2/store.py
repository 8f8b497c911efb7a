"""A folder in the cache that is either whole or not there."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from agentrl import PluginError

__all__ = ["FolderStore"]

_MANIFEST = "agentrl-manifest.json"
_WAIT_S = 1800.0


class FolderStore:
    """Makes ``place`` once for every process of the machine, and sees that it stays what was made.

    A manifest in the folder, written last, names each file's size, time and digest. A file whose size or time is
    another is read again, and the folder is made anew where its content has changed.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    def get(self) -> Path | None:
        """The folder if it is whole and unchanged, else ``None``."""
        try:
            manifest = json.loads((self.place / _MANIFEST).read_text(encoding="utf-8"))
            files = [(self.place / name, entry) for name, entry in manifest["files"].items()]
            whole = all(_unchanged(path, entry) for path, entry in files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return self.place if whole else None

    def put(self, make: Callable[[Path], None]) -> Path:
        """Have ``make`` fill a new folder, and put it in place; another process that is at it is waited for.

        Whatever ends it early, an interrupt included, leaves the place as it was. Raises ``PluginError`` where the
        folder cannot be written, or another process does not end within half an hour.
        """
        try:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.place}.lock", timeout=_WAIT_S):
                return self.get() or self._made(make)
        except Timeout as error:
            raise PluginError(f"another process has held {error.lock_file} for {_WAIT_S / 60:.0f} minutes") from error
        except OSError as error:
            raise PluginError(
                f"the model's folder {self.place} cannot be written: {error}",
                fix="free some space, or set XDG_CACHE_HOME to another folder",
            ) from error

    def _made(self, make: Callable[[Path], None]) -> Path:
        staging = Path(tempfile.mkdtemp(prefix=f"{self.place.name}.", dir=self.place.parent))
        try:
            folder = staging / "model"
            folder.mkdir()
            make(folder)
            files = {path.name: _entry(path) for path in sorted(folder.iterdir())}
            (folder / _MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
            shutil.rmtree(self.place, ignore_errors=True)
            folder.rename(self.place)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return self.place


def _entry(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stat = path.stat()
    return {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns, "sha256": digest}


def _unchanged(path: Path, entry: dict[str, int | str]) -> bool:
    stat = path.stat()
    if (stat.st_size, stat.st_mtime_ns) == (entry["bytes"], entry["modified_ns"]):
        return True
    return stat.st_size == entry["bytes"] and _entry(path)["sha256"] == entry["sha256"]
