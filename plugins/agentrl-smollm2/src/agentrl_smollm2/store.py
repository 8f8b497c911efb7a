"""A folder in the cache that is either complete or not there."""

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
    """Makes ``folder`` once for every process of the machine, and checks that it stays as it was made.

    A manifest in the folder, written last, holds each file's size, time and digest. A file with another size or time
    is read again, and the folder is made anew where its content has changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self) -> Path | None:
        """Returns the folder if it is complete and unchanged, else ``None``."""
        try:
            manifest = json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))
            files = [(self.folder / name, entry) for name, entry in manifest["files"].items()]
            whole = all(_unchanged(path, entry) for path, entry in files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return self.folder if whole else None

    def put(self, make: Callable[[Path], None]) -> Path:
        """Have ``make`` fill a new folder, put it in place, and return it. Another process that makes it is waited for.

        Whatever ends this early, an interrupt included, leaves the folder as it was. Raises ``PluginError`` where the
        folder cannot be written, or another process does not end within half an hour.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.folder}.lock", timeout=_WAIT_S):
                return self.get() or self._made(make)
        except Timeout as error:
            raise PluginError(f"another process has held {error.lock_file} for {_WAIT_S / 60:.0f} minutes") from error
        except OSError as error:
            raise PluginError(
                f"the model's folder {self.folder} cannot be written: {error}",
                fix="free some space, or set XDG_CACHE_HOME to another folder",
            ) from error

    def _made(self, make: Callable[[Path], None]) -> Path:
        staging = Path(tempfile.mkdtemp(prefix=f"{self.folder.name}.", dir=self.folder.parent))
        try:
            made = staging / "model"
            made.mkdir()
            make(made)
            files = {path.name: _entry(path) for path in sorted(made.iterdir())}
            (made / _MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
            shutil.rmtree(self.folder, ignore_errors=True)
            made.rename(self.folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return self.folder


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
