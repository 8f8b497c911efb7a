"""How much KV cache a server on a CPU gets. vLLM's own default there is a share of the machine, whatever the model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["kv_cache_bytes"]

_LEAST = 64 * 2**20
_UNKNOWN = 2**30
"""For a model whose config does not say what a token takes."""
_BLOCK = 128
"""Tokens; a sequence takes whole blocks of the cache."""


def kv_cache_bytes(model_folder: Path, sequences: int, element_bytes: int) -> int:
    """Bytes for ``sequences`` of the model's full context at once, at most a quarter of the machine's memory."""
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    of_token = _bytes_of_token(config, element_bytes)
    longest = config.get("max_position_embeddings")
    if of_token is None or not isinstance(longest, int):
        wanted = _UNKNOWN
    else:
        wanted = (sequences + 1) * -(-longest // _BLOCK) * _BLOCK * of_token
    return min(max(wanted, _LEAST), _memory() // 4)


def _bytes_of_token(config: Mapping[str, object], element_bytes: int) -> int | None:
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    kv_heads, hidden = config.get("num_key_value_heads", heads), config.get("hidden_size")
    if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(kv_heads, int)):
        return None
    size = config.get("head_dim") or (hidden // heads if isinstance(hidden, int) else None)
    return 2 * layers * kv_heads * size * element_bytes if isinstance(size, int) else None


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
