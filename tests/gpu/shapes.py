"""Models of known shapes with random numbers, and batches that fill passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agentrl.learner.contract import Targets, TrainBatch

__all__ = ["QWEN3", "filled_batch", "random_model"]

QWEN3 = {
    "qwen3-0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "qwen3-small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4},
}
"""Sizes of Qwen3 models, as their configurations have them; the last is for machines without a GPU."""
_COMMON = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True}
_SMALL = {"num_key_value_heads": 2, "head_dim": 64, "vocab_size": 8192, "tie_word_embeddings": True}


def random_model(name: str, folder: Path) -> Path:
    """Write a model of the shape ``name`` into ``folder``, in bfloat16, and return that."""
    sizes = QWEN3[name] | (_SMALL if name == "qwen3-small" else _COMMON)
    config = AutoConfig.for_model("qwen3", **sizes, max_position_embeddings=4096)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def filled_batch(vocabulary: int, tokens: int, *, passes: int = 2, rows: int = 8, seed: int = 0) -> TrainBatch:
    """A batch of ``passes`` passes of ``tokens`` tokens each, all of which but the first of each row are trained."""
    random = np.random.default_rng(seed)
    length = tokens // rows
    paths = tuple(random.integers(0, vocabulary, length) for _ in range(passes * rows))
    path = np.repeat(np.arange(len(paths)), length - 1)
    targets = Targets(
        path=path,
        depth=np.tile(np.arange(length - 1), len(paths)),
        token=np.concatenate([ids[1:] for ids in paths]),
        temperature=np.ones(len(path)),
    )
    return TrainBatch(
        paths=paths,
        targets=targets,
        logprob=np.full(len(path), -np.log(vocabulary)),
        version=np.zeros(len(path), dtype=np.int64),
        advantage=random.normal(size=len(path)),
        weight=np.full(len(path), 1 / len(path)),
        call=path,
    )
