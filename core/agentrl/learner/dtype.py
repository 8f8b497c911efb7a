"""The number type that a model folder keeps its weights in."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig

__all__ = ["stored_dtype"]

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def stored_dtype(folder: Path) -> torch.dtype:
    """What the config of ``folder`` says, else the type of its first tensor; float32 for what is no plain float.

    Raises what transformers raises for a folder without a config.
    """
    named = AutoConfig.from_pretrained(folder).get_text_config().dtype
    if isinstance(named, str):
        named = getattr(torch, named, None)
    if named is None:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dict
                    return _FLOATS.get(tensors.get_slice(name).get_dtype(), torch.float32)
    return named if named in _FLOATS.values() else torch.float32
