"""The model as the engine runs it: one forward over rows of different lengths, which reads and writes a KV block.

``Decoder`` makes the inputs of a forward and hands them to a network. ``PlainNetwork`` is the Hugging Face model's own
forward, which every supported model has; ``agentrl.inference.engine.fused`` has a quicker one.

Shapes: ``B`` rows, ``Q`` tokens a row, ``N`` tokens (``B * Q``), ``L`` columns of the block that attention sees,
``V`` vocabulary, ``E`` hidden size, ``D`` head dimension.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from agentrl.errors import BackendError, one_line, shortened
from agentrl.inference.contract import Adapter, Weights
from agentrl.inference.engine.cache import FEWEST_ROWS, Ids, KVBlock, KVLayout, RowCache, round_up
from agentrl.inference.engine.sharing import SharedModel

__all__ = ["Decoder", "ForwardBatch", "Network", "PlainNetwork", "irreproducible", "unsupported"]


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The input of one forward: ``Q`` tokens in each of ``B`` rows."""

    ids_BQ: torch.Tensor
    positions_BQ: torch.Tensor
    masks: dict[str, torch.Tensor]
    """Additive masks ``[B, 1, Q, L]`` by type of layer."""
    cache: RowCache
    length: int
    """``L``: all positions are below it."""
    bounds: tuple[int, int]
    """The lowest and the highest position."""


class Network(Protocol):
    """A forward of the model, which writes the batch's keys and values to its cache."""

    @property
    def reproducible(self) -> bool:
        """Whether a token's logits have the same bits whatever else is in its batch."""
        ...

    def columns(self, tokens: int) -> int:
        """Returns how many columns attention should see of a block that has them, so that it sees ``tokens``."""
        ...

    def hidden(self, batch: ForwardBatch) -> None:
        """Write keys and values, and compute no logits."""
        ...

    def logits(self, batch: ForwardBatch) -> torch.Tensor:
        """Write keys and values. Returns the logits ``[B, V]`` of each row's last token."""
        ...

    def refresh(self) -> None:
        """Take over the model's parameters after they have changed in place."""
        ...


class Decoder:
    """Runs a causal language model on rows of different lengths, through ``network``.

    ``plain_because`` says why the network is the model's own forward and no quicker one, and ``shared`` is the model
    where its memory is the learner's. Raises ``BackendError`` for a model that takes no positions, or whose layers keep
    something other than keys and values by position.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        network: Network,
        *,
        plain_because: str | None = None,
        shared: SharedModel | None = None,
    ) -> None:
        self.model = model
        self.shared = shared
        self.plain_because = plain_because
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
        """The attention windows of layers that have one, in tokens."""
        return [window for window in self._windows.values() if window is not None]

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return self.layout.device

    @property
    def reproducible(self) -> bool:
        """Whether a token's logits have the same bits whatever else is in its batch."""
        return self._network.reproducible

    def prefill(self, ids_BQ: Ids, positions_BQ: Ids, block: KVBlock) -> None:
        """Write the KV of tokens at their positions in the first ``B`` rows of ``block``."""
        self._network.hidden(self._batch(ids_BQ, positions_BQ, block))

    def decode(self, ids_B: Ids, positions_B: Ids, block: KVBlock) -> torch.Tensor:
        """Write the KV of one more token in each of the first ``B`` rows of ``block``.

        Returns the logits ``[B, V]`` after it. Up to ``FEWEST_ROWS - 1`` rows after them may be written to.
        """
        rows = len(ids_B)
        missing = min(FEWEST_ROWS, block.rows) - rows
        if missing > 0:
            ids_B, positions_B = (np.pad(array, (0, missing), mode="edge") for array in (ids_B, positions_B))
        return self._network.logits(self._batch(ids_B[:, None], positions_B[:, None], block))[:rows]

    @property
    def follows(self) -> bool:
        """Whether new weights come into the model's parameters by themselves, since their memory is the learner's."""
        return self.shared is not None and self.shared.weights.adapter is None

    def refresh(self) -> None:
        """Take over the parameters after their memory, which is the learner's, has got other numbers."""
        self._network.refresh()

    def load(self, weights: Weights) -> int:
        """Copy ``weights`` into the model's parameters; a tied parameter may come under any of its names.

        Where they have an adapter, only what it changes is copied, a tensor at a time; where the memory is the
        learner's, nothing is, or the adapter. Returns how many bytes have come. Raises ``BackendError``, with the model
        untouched, where a name is unknown or missing or a shape differs, and where the memory is another learner's.
        """
        targets = self.model.state_dict(keep_vars=True)
        if self.shared is not None:
            if weights.adapter is None:
                self.shared.check(weights)
                return 0
            came = self.shared.merge(weights.adapter)
            self._network.refresh()
            return came
        if weights.adapter is not None:
            return self._load_adapted(weights.adapter, targets)
        new = dict(weights.tensors())
        _check_weights(targets, new, {id(parameter) for parameter in self.model.parameters()})
        with torch.no_grad():
            for name, tensor in new.items():
                targets[name].copy_(tensor)
        self._network.refresh()
        return sum(tensor.nbytes for tensor in new.values())

    def _load_adapted(self, adapter: Adapter, targets: dict[str, torch.Tensor]) -> int:
        sides: dict[str, list[int]] = {}
        for name, tensor in adapter.tensors():
            layer, _, kind = name.removesuffix(".weight").rpartition(".")
            sides.setdefault(f"{layer}.weight", []).append(tensor.shape[0 if kind == "lora_B" else 1])
        wrong = [name for name in sides if name not in targets or sorted(targets[name].shape) != sorted(sides[name])]
        if wrong:
            raise BackendError(
                f"the adapter does not fit the engine's model: {len(wrong)} of its layers are unknown, or of another "
                f"shape ({', '.join(wrong[:3])})",
                fix="train and sample the same model; the engine keeps its old weights",
            )
        came = 0
        with torch.no_grad():
            for name, tensor in adapter.merged():
                targets[name].copy_(tensor)
                came += tensor.nbytes
        self._network.refresh()
        return came

    def _batch(self, ids_BQ: Ids, positions_BQ: Ids, block: KVBlock) -> ForwardBatch:
        bounds = int(positions_BQ.min()), int(positions_BQ.max())
        length = min(self._network.columns(bounds[1] + 1), block.capacity)
        ids, positions = (torch.from_numpy(array).to(self.device) for array in (ids_BQ, positions_BQ))
        masks, cache = self._masks(positions, length), RowCache(block, positions, length)
        return ForwardBatch(ids, positions, masks, cache, length, bounds)

    def _masks(self, positions_BQ: torch.Tensor, length: int) -> dict[str, torch.Tensor]:
        """Additive masks ``[B, 1, Q, L]`` by type of layer."""
        columns_L = torch.arange(length, device=self.device)
        positions_B1Q1 = positions_BQ[:, None, :, None]
        masks = {}
        for kind, window in self._windows.items():
            visible = columns_L <= positions_B1Q1
            if window is not None:
                visible &= columns_L > positions_B1Q1 - window
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
        """The window of each type of layer that the model has; ``None`` for full attention."""
        window = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None)
        if kinds is None:
            kinds = ["sliding_attention" if window else "full_attention"]
        strange = sorted(set(kinds) - {"full_attention", "sliding_attention"})
        if strange:
            raise unsupported(self.model, f"it has layers of type {', '.join(strange)}")
        return {kind: window if kind == "sliding_attention" else None for kind in dict.fromkeys(kinds)}

    def _probe_layout(self) -> KVLayout:
        """The shapes of keys and values, from a forward over one token."""
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


def irreproducible(reason: str) -> BackendError:
    """Returns the error for a model whose numbers depend on the batch, for ``reason``."""
    return BackendError(
        f"inference.backend.reproducible: the model's numbers depend on what else is computed beside them: {reason}",
        fix="set it to auto or false",
    )


def unsupported(model: PreTrainedModel, reason: str) -> BackendError:
    """Returns the error for a model that this engine cannot run exactly, for ``reason``."""
    return BackendError(
        f"the torch engine cannot run {type(model).__name__}: {reason}",
        fix="choose a model with attention layers only that takes `position_ids`, or another inference.backend",
    )


def _check_weights(targets: dict[str, torch.Tensor], new: dict[str, torch.Tensor], parameters: set[int]) -> None:
    unknown = sorted(new.keys() - targets.keys())
    covered = {id(targets[name]) for name in new.keys() & targets.keys()}
    missing = sorted(name for name, tensor in targets.items() if id(tensor) in parameters - covered)
    shapes = [
        f"{name} is {list(new[name].shape)} and should be {list(targets[name].shape)}"
        for name in new.keys() & targets.keys()
        if new[name].shape != targets[name].shape
    ]
    problems = {"unknown": unknown, "missing": missing, "wrongly shaped": sorted(shapes)}
    found = [f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in problems.items() if names]
    if found:
        raise BackendError(
            f"the new weights do not fit the engine's model: {'; '.join(found)}",
            fix="train and sample the same model; the engine keeps its old weights",
        )


class PlainNetwork:
    """The Hugging Face model's own forward."""

    reproducible = False

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def columns(self, tokens: int) -> int:
        """See ``Network``."""
        return round_up(tokens)

    def hidden(self, batch: ForwardBatch) -> None:
        """See ``Network``."""
        self._model.base_model(**_arguments(batch))

    def logits(self, batch: ForwardBatch) -> torch.Tensor:
        """See ``Network``."""
        logits_BQV: torch.Tensor = self._model(**_arguments(batch), logits_to_keep=1).logits
        return logits_BQV[:, -1]

    def refresh(self) -> None:
        """See ``Network``."""


def _arguments(batch: ForwardBatch) -> dict[str, Any]:
    # Models with one type of layer take a mask of four dimensions as it is, the others one for each type.
    masks = batch.masks
    return {
        "input_ids": batch.ids_BQ,
        "position_ids": batch.positions_BQ,
        "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
        "past_key_values": batch.cache,
        "use_cache": True,
    }
