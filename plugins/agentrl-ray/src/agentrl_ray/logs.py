"""What hosts print, brought home to the run's logs while they live, and what they printed last when they are gone."""

from __future__ import annotations

import threading
from datetime import datetime
from pathlib import Path

from agentrl import redact
from agentrl_ray.actor import without_rays_own

__all__ = ["HostLog"]

_TAIL = 4096
_LINES = 4
_LINE = 200


class HostLog:
    """What one host has printed: how far its files were read, its last lines, and the copy at home."""

    def __init__(self, files: tuple[str, ...], path: Path | None, header: str) -> None:
        """``files`` are those on the host's node, ``path`` the copy; ``None`` keeps no more than the last lines."""
        self.path = path
        self._offsets = dict.fromkeys(files, 0)
        self._tail = b""
        self._lock = threading.Lock()
        self.fault: str | None = None
        """Why the copy cannot be written; nothing more is written then."""
        if path is not None:
            self._guarded(f"--- {datetime.now():%Y-%m-%d %H:%M:%S} {header}\n".encode())

    @property
    def offsets(self) -> dict[str, int]:
        """How much of each file was read, in bytes."""
        with self._lock:
            return dict(self._offsets)

    def add(self, found: dict[str, bytes]) -> bool:
        """Keep what was read beyond ``offsets``; returns whether there was anything."""
        with self._lock:
            for file, chunk in found.items():
                self._offsets[file] = self._offsets.get(file, 0) + len(chunk)
                kept = without_rays_own(chunk)
                self._tail = (self._tail + kept)[-_TAIL:]
                if kept and self.path is not None:
                    self._guarded(kept)
        return any(found.values())

    def told(self) -> str:
        """The last lines, to end a sentence with; empty where nothing was printed."""
        with self._lock:
            lines = [" ".join(line.split()) for line in self._tail.decode("utf-8", "replace").splitlines()]
        last = [redact(line)[:_LINE] for line in lines if line][-_LINES:]
        where = f" ({self.path})" if self.path is not None else ""
        return f"; it printed last: {' | '.join(last)}{where}" if last else ""

    def _guarded(self, chunk: bytes) -> None:
        if self.path is None or self.fault is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(redact(chunk.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape"))
        except OSError as error:
            self.fault = f"what hosts print is no longer kept: {self.path}: {error.strerror or error}"
