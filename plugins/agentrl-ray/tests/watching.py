"""A reporter that keeps what a run tells, and may act on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Watching:
    """Keeps lines and metrics; ``on`` is called with the name of each report and what it holds."""

    def __init__(self, on: Callable[[str, Any], None] = lambda name, held: None) -> None:
        self.lines: list[str] = []
        self.metrics: list[dict[str, float]] = []
        self.on = on

    def note(self, text: str) -> None:
        self.lines.append(text)
        self.on("note", text)

    def warning(self, text: str) -> None:
        self.lines.append(f"warning: {text}")
        self.on("warning", text)

    def activity_started(self, name: str, episodes: int | None = None) -> None:
        self.on("activity", name)

    def episode_finished(self, episode: Any) -> None:
        self.on("episode", episode)

    def step_finished(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics.append(dict(metrics))
        self.on("step", step)

    def evaluation_finished(self, step: int, results: dict[str, float]) -> None:
        self.on("evaluation", step)

    def run_started(self, run: Any) -> None: ...

    def run_finished(self, summary: Any) -> None: ...

    def close(self) -> None: ...

    def told(self, *words: str) -> list[str]:
        """The lines with all of ``words``."""
        return [line for line in self.lines if all(word in line for word in words)]
