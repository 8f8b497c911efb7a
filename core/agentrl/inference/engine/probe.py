"""Whether the decoder computes what the model's own plain forward does."""

from __future__ import annotations

import numpy as np
import torch

from agentrl.errors import one_line, shortened
from agentrl.inference.engine.decoder import Decoder
from agentrl.inference.engine.kv import KVBlock, round_up

__all__ = ["inexactness"]

_TOKENS = 24
_LONGEST = 512
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}
"""Largest difference of a logprob: rounding stays below, a wrong mask or position goes beyond."""


def inexactness(decoder: Decoder) -> str | None:
    """How two ragged rows, prefilled in pieces and decoded, differ from a plain forward; ``None`` if they do not."""
    beyond = [window + 8 for window in decoder.windows if window + 8 <= _LONGEST]
    tokens = max([_TOKENS, *beyond])
    rows = np.random.default_rng(0).integers(0, decoder.vocabulary, (2, tokens))
    lengths = np.array([tokens - 1, tokens // 2])
    try:
        found = _decoded(decoder, rows, lengths)
    except Exception as error:
        reason = f"{type(error).__name__}: {shortened(one_line(error))}"
        return f"its forward does not take rows of different lengths, masked and with positions: {reason}"
    expected = torch.stack([_plain(decoder, row[: n + 1]) for row, n in zip(rows, lengths, strict=True)])
    difference = float((found - expected).abs().max())
    if difference <= _TOLERANCE[decoder.layout.dtype]:
        return None
    return f"decoded row by row its logprobs are off by {difference:.2g}"


def _decoded(decoder: Decoder, rows: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    block = KVBlock(decoder.layout, len(rows) + 1, round_up(rows.shape[1] + 1))
    for piece in np.split(np.arange(rows.shape[1]), [rows.shape[1] // 3]):
        positions = np.minimum(piece, lengths[:, None])
        decoder.prefill(np.ascontiguousarray(rows[:, piece]), positions, block)
    return decoder.decode(rows[[0, 1], lengths], lengths, block).float().log_softmax(-1)


def _plain(decoder: Decoder, ids: np.ndarray) -> torch.Tensor:
    inputs = torch.from_numpy(ids)[None].to(decoder.device)
    logits: torch.Tensor = decoder.model(inputs, use_cache=False).logits[0, -1]
    return logits.float().log_softmax(-1)
