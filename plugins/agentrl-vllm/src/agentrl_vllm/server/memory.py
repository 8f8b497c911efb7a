"""What a server on a CPU needs to be told of its memory, since vLLM's defaults there do not look at the model."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Shape", "kv_cache_bytes", "longest_context", "shape_of"]

_LEAST = 64 * 2**20
_UNKNOWN = 2**30
"""For a model whose config does not say what a token takes."""
_LONGEST = 32768
"""Tokens of a sequence, unless more is asked for: what some configs promise would take all of the memory."""
_BLOCK = 128
"""Tokens; a sequence takes whole blocks of the cache."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's config says; ``None`` for what it does not say in the usual words."""

    context_length: int | None
    """Positions that it knows."""
    elements: int | None
    """Numbers that the KV cache holds for a token."""


def shape_of(model_folder: Path) -> Shape:
    """Read the config in ``model_folder``. Raises ``OSError`` or ``ValueError``."""
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config") or config
    longest = config.get("max_position_embeddings")
    return Shape(longest if isinstance(longest, int) else None, _elements(config))


def kv_cache_bytes(shape: Shape, sequences: int, element_bytes: int) -> int:
    """Bytes for ``sequences`` of the full context at once, at most a quarter of the machine's memory."""
    if shape.elements is None or shape.context_length is None:
        wanted = _UNKNOWN
    else:
        blocks = (sequences + 1) * -(-min(shape.context_length, _LONGEST) // _BLOCK)
        wanted = blocks * _BLOCK * shape.elements * element_bytes
    return min(max(wanted, _LEAST), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)


def longest_context(shape: Shape, size: int, element_bytes: int) -> int | None:
    """Tokens of the longest sequence that a cache of ``size`` bytes is to hold; ``None`` where only vLLM can tell."""
    if shape.context_length is None:
        return None
    fits = shape.context_length if shape.elements is None else size // (shape.elements * element_bytes)
    return min(shape.context_length, _LONGEST, fits // _BLOCK * _BLOCK or fits)


def _elements(config: dict[str, Any]) -> int | None:
    try:
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // heads
        return int(2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * size)
    except (KeyError, TypeError):
        return None
