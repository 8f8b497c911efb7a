"""Models of known shapes with random numbers, and batches that fill passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agentrl.learner.contract import Targets, TrainBatch

__all__ = ["SHAPES", "filled_batch", "random_model"]

_QWEN3 = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True}
SHAPES = {
    "qwen3-0.6b": _QWEN3
    | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-4b": _QWEN3
    | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "qwen3-small": _QWEN3
    | {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "head_dim": 64, "vocab_size": 8192},
    "llama-135m": {"model_type": "llama", "vocab_size": 49_152, "tie_word_embeddings": True, "num_hidden_layers": 30}
    | {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3},
}
"""Sizes of models, of Qwen3 where nothing else is said, as their configurations have them: SmolLM2's is the last, and
that before it is for machines without a GPU."""


def random_model(name: str, folder: Path) -> Path:
    """Write a model of the shape ``name`` into ``folder``, in bfloat16, and return that."""
    config = AutoConfig.for_model(**{"model_type": "qwen3", "max_position_embeddings": 4096} | SHAPES[name])
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
