"""The bundled models, as folders that Hugging Face's libraries load."""

from __future__ import annotations

from pathlib import Path

__all__ = ["TINY"]

TINY = Path(__file__).parent / "tiny"
"""A Qwen3 of some 430,000 parameters that can add, copy and call a tool, and mostly does not."""
