"""The model as the engine runs it: rows of different lengths in one forward over a KV block.

Shapes: ``B`` rows, ``Q`` tokens a row, ``L`` columns of the block that attention sees, ``V`` vocabulary.
"""

from __future__ import annotations

import inspect

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from agentrl.errors import BackendError, one_line, shortened
from agentrl.inference.engine.cache import RowCache
from agentrl.inference.engine.kv import KVBlock, KVLayout, round_up
from agentrl.inference.engine.network import Batch, Network
from agentrl.inference.engine.prefixes import Ids

__all__ = ["FEWEST_ROWS", "Decoder", "unsupported"]

FEWEST_ROWS = 4
"""Of any product. On CPU one of fewer rows takes another kernel, which rounds otherwise: where this holds, a token's
logits are the same to the last bit, however many others are computed beside it."""


class Decoder:
    """Runs a causal language model with ragged rows, through ``network``.

    Raises ``BackendError`` for a model whose layers keep something other than keys and values by position.
    """

    def __init__(self, model: PreTrainedModel, network: Network) -> None:
        self.model = model
        self.config = model.config.get_text_config()
        self._network = network
        self._embedding: torch.Tensor = model.get_input_embeddings().get_parameter("weight")
        self.vocabulary: int = self._embedding.shape[0]
        self._refuse_without_positions()
        self._windows = self._layer_windows()
        self.layout = self._probe_layout()
        self._visible = torch.zeros((), dtype=self.layout.dtype, device=self.device)
        self._blocked = torch.full((), float("-inf"), dtype=self.layout.dtype, device=self.device)

    @property
    def windows(self) -> list[int]:
        """Attention windows that layers have."""
        return [window for window in self._windows.values() if window is not None]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.layout.device

    def prefill(self, ids_BQ: Ids, positions_BQ: Ids, block: KVBlock) -> None:
        """Write the KV of tokens at their positions in the first ``B`` rows; no logits."""
        self._network.hidden(self._batch(ids_BQ, positions_BQ, block))

    def decode(self, ids_B: Ids, positions_B: Ids, block: KVBlock) -> torch.Tensor:
        """Logits ``[B, V]`` after one more token in each of the first ``B`` rows.

        Of the rows after them, a few may be written to.
        """
        rows = len(ids_B)
        missing = min(FEWEST_ROWS, block.rows) - rows
        if missing > 0:
            ids_B, positions_B = (
                np.concatenate([array, np.zeros(missing, np.int64)]) for array in (ids_B, positions_B)
            )
        return self._network.logits(self._batch(ids_B[:, None], positions_B[:, None], block))[:rows]

    def _batch(self, ids_BQ: Ids, positions_BQ: Ids, block: KVBlock) -> Batch:
        length = min(round_up(int(positions_BQ.max()) + 1), block.capacity)
        ids, positions = (torch.from_numpy(array).to(self.device) for array in (ids_BQ, positions_BQ))
        return Batch(ids, positions, self._masks(positions, length), RowCache(block, positions, length), length)

    def _masks(self, positions_BQ: torch.Tensor, length: int) -> dict[str, torch.Tensor]:
        """Additive masks ``[B, 1, Q, L]`` by type of layer."""
        columns_L = torch.arange(length, device=self.device)
        positions = positions_BQ[:, None, :, None]
        masks = {}
        for kind, window in self._windows.items():
            visible = columns_L <= positions
            if window is not None:
                visible &= columns_L > positions - window
            masks[kind] = torch.where(visible, self._visible, self._blocked)
        return masks

    def _refuse_without_positions(self) -> None:
        """Rows of different lengths go through one forward only where it is told each token's position."""
        told = "position_ids" in inspect.signature(self.model.base_model.forward).parameters
        if not told or getattr(self.config, "alibi", False):
            raise unsupported(
                self.model,
                "it counts positions itself (ALiBi does), and rows of different lengths need to tell it theirs",
            )

    def _layer_windows(self) -> dict[str, int | None]:
        """Window of each type of layer that the model has; ``None`` is no window."""
        window = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None)
        if kinds is None:
            kinds = ["sliding_attention" if window else "full_attention"]
        strange = sorted(set(kinds) - {"full_attention", "sliding_attention"})
        if strange:
            raise unsupported(self.model, f"it has layers of type {', '.join(strange)}")
        return {kind: window if kind == "sliding_attention" else None for kind in dict.fromkeys(kinds)}

    def _probe_layout(self) -> KVLayout:
        """Shapes of keys and values, from a forward over one token."""
        ids = torch.zeros((1, 1), dtype=torch.long, device=self._embedding.device)
        cache = DynamicCache(config=self.config)
        try:
            self.model.base_model(ids, past_key_values=cache, use_cache=True)
        except Exception as error:
            raise unsupported(self.model, f"{type(error).__name__}: {shortened(one_line(error))}") from error
        planes = []
        for layer in cache.layers:
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            if keys is None or values is None:
                raise unsupported(self.model, f"a layer keeps its state as {type(layer).__name__}")
            planes += [(keys.shape[1], keys.shape[3]), (values.shape[1], values.shape[3])]
        return KVLayout(tuple(planes), self._embedding.dtype, self._embedding.device)


def unsupported(model: PreTrainedModel, reason: str) -> BackendError:
    """The error for a model that this engine cannot run exactly."""
    return BackendError(
        f"the torch engine cannot run {type(model).__name__}: {reason}",
        fix="choose a model with attention layers only that takes `position_ids`, or another inference.backend",
    )
