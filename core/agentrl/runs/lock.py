"""One writer a folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from agentrl.errors import RunError, cannot_write

__all__ = ["FolderLock"]


class FolderLock:
    """Held from construction to ``release``, or until the process ends in whatever way.

    It is advisory, and leaves no file. Raises ``RunError`` where somebody else holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.held = False
        """False where the file system has no such locks: then nothing keeps a second writer out."""
        try:
            self._descriptor: int | None = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.held = True
        except OSError as error:
            self.release()
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise RunError(
                    f"another run is writing to {folder}", fix="wait until it ends, or set run.name to another name"
                ) from error

    def release(self) -> None:
        """Let others have the folder. Safe to call twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self.held = False
