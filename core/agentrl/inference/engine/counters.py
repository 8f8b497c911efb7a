"""What the engine has done, for benchmarks and metrics."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """Totals since the engine started, and what it holds."""

    tokens: int = 0
    """Sampled."""
    prompt_tokens: int = 0
    """Of admitted prompts, without the last of each, which decodes."""
    prefix_hit_tokens: int = 0
    """Of those, how many were not computed again."""
    steps: int = 0
    busy_seconds: float = 0.0
    running: int = 0
    """Completions that have a row, or wait for their prompt's KV, now."""
    waiting: int = 0
    """Completions that wait for room, now."""
