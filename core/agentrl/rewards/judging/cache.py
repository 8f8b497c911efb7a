"""Verdicts that were paid for: each a file of its own, written whole, so that several runs may share a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agentrl.rewards.judging.spending import write_whole

__all__ = ["Verdicts"]


class Verdicts:
    """Keeps verdicts by the digest of what was asked: in memory, and in a folder once there is one."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._known: dict[str, str] = {}

    def get(self, digest: str) -> str | None:
        """The text of the verdict for ``digest``; ``None`` where there is none, or its file is damaged."""
        if digest not in self._known and self.folder is not None:
            try:
                kept = json.loads(self._file(digest).read_text(encoding="utf-8"))["verdict"]
            except (OSError, ValueError, KeyError, TypeError):
                return None
            if isinstance(kept, str):
                self._known[digest] = kept
        return self._known.get(digest)

    def put(self, digest: str, verdict: str, asked: dict[str, Any]) -> None:
        """Keep ``verdict``, with what was ``asked`` beside it for people. Raises ``RunError`` where it cannot be."""
        self._known[digest] = verdict
        if self.folder is not None:
            write_whole(self._file(digest), json.dumps({"verdict": verdict, "asked": asked}))

    def _file(self, digest: str) -> Path:
        assert self.folder is not None
        return self.folder / digest[:2] / f"{digest}.json"
