"""The model as the engine runs it: one forward over rows of different lengths, which reads and writes a KV block.

``Decoder`` makes the inputs of a forward and hands them to a network. ``PlainNetwork`` is the Hugging Face model's own
forward, which every supported model has. ``FusedNetwork`` computes the Llama family from the same weights in a third
of the operations: a small model's decoding step is bound by how many operations it launches, and each of them also
passes the interpreter's lock back and forth with the other threads of the process.

Shapes: ``B`` rows, ``Q`` tokens a row, ``N`` tokens (``B * Q``), ``L`` columns of the block that attention sees,
``V`` vocabulary, ``E`` hidden size, ``D`` head dimension.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from agentrl.errors import BackendError, one_line, shortened
from agentrl.inference.contract import Weights
from agentrl.inference.engine.arithmetic import Arithmetic, InvariantArithmetic, Product, QuickArithmetic
from agentrl.inference.engine.cache import FEWEST_ROWS, Ids, KVBlock, KVLayout, RowCache, round_up

__all__ = ["Decoder", "ForwardBatch", "FusedNetwork", "Network", "PlainNetwork", "irreproducible", "unsupported"]

_FUSED_FAMILY = {"llama", "mistral", "qwen2", "qwen3"}
_ALIGNMENT = 64
"""Bytes to a multiple of which torch allocates."""
_HEAD_NORM = "self_attn.q_norm.weight"
_STATIC_ROPES = {"default", "linear", "llama3", "yarn"}

Rotation = tuple[torch.Tensor, torch.Tensor]


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


class Decoder:
    """Runs a causal language model on rows of different lengths, through ``network``.

    Raises ``BackendError`` for a model that takes no positions, or whose layers keep something other than keys and
    values by position.
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

    def load(self, weights: Weights) -> None:
        """Copy ``weights`` into the model's parameters; a tied parameter may come under any of its names.

        Raises ``BackendError``, with the model untouched, where a name is unknown or missing or a shape differs.
        """
        targets = self.model.state_dict(keep_vars=True)
        new = dict(weights.tensors())
        _check_weights(targets, new, {id(parameter) for parameter in self.model.parameters()})
        with torch.no_grad():
            for name, tensor in new.items():
                targets[name].copy_(tensor)

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


class FusedNetwork:
    """A Llama, Mistral, Qwen2 or Qwen3 model, computed from its own weights with joined projections and fused norms.

    The model's parameters become views of the joined weights, so that an update in place reaches both. ``reproducible``
    chooses an arithmetic in which a token's numbers do not depend on the batch; it is for float32 on the CPU, and
    raises ``BackendError`` where torch has none here.
    """

    def __init__(self, model: PreTrainedModel, *, reproducible: bool = False) -> None:
        config, trunk = model.config, model.base_model
        self._embedding = trunk.get_submodule("embed_tokens")
        self._rotary = _Rotations(trunk.get_submodule("rotary_emb"), self._embedding.get_parameter("weight"))
        kinds = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
        self._layers = [
            _Layer(trunk.get_submodule(f"layers.{index}"), config, kind) for index, kind in enumerate(kinds)
        ]
        self._norm = _Norm(trunk.get_parameter("norm.weight"), config.rms_norm_eps)
        head = model.get_submodule("lm_head")
        bias: torch.Tensor | None = dict(head.named_parameters()).get("bias")
        self._head = _aligned(head.get_parameter("weight")), bias
        self.reproducible = reproducible
        self._arithmetic: Arithmetic = QuickArithmetic()
        if reproducible:
            self._arithmetic = self._invariant(config)

    @staticmethod
    def suits(model: PreTrainedModel) -> bool:
        """Whether the model is of the family, with plain linear layers and rotations that do not depend on lengths."""
        if model.config.model_type not in _FUSED_FAMILY:
            return False
        rope = getattr(model.config, "rope_parameters", None) or {}
        modules = dict(model.named_modules())
        return (
            rope.get("rope_type", "default") in _STATIC_ROPES
            and all(type(module) is nn.Linear for name, module in modules.items() if name.endswith("_proj"))
            and all(module.bias is None for name, module in modules.items() if name.endswith(("o_proj", "down_proj")))
        )

    def columns(self, tokens: int) -> int:
        """See ``Network``."""
        return self._arithmetic.columns(tokens)

    def hidden(self, batch: ForwardBatch) -> None:
        """See ``Network``."""
        self._trunk(batch)

    def logits(self, batch: ForwardBatch) -> torch.Tensor:
        """See ``Network``."""
        rows, tokens = batch.ids_BQ.shape
        last_BE = self._trunk(batch)
        if tokens > 1:
            last_BE = self._arithmetic.padded(last_BE[: rows * tokens].view(rows, tokens, -1)[:, -1])
        return self._arithmetic.linear(self._norm(last_BE), *self._head)[:rows]

    def _invariant(self, config: PreTrainedConfig) -> InvariantArithmetic:
        if config.hidden_act != "silu":
            raise irreproducible(f"its activation is {config.hidden_act}, not silu")
        products = {product for layer in self._layers for product in layer.products()}
        products.add(("linear", self._head[0].shape[1], self._head[0].shape[0], self._head[1] is not None))
        keys: int = config.num_key_value_heads
        return InvariantArithmetic(products, keys, config.num_attention_heads // keys, self._layers[0].dim)

    def _trunk(self, batch: ForwardBatch) -> torch.Tensor:
        """Hidden states ``[N, E]`` before the last norm, perhaps followed by rows that mean nothing."""
        hidden_NE: torch.Tensor = self._arithmetic.padded(self._embedding(batch.ids_BQ.flatten()))
        rotation = self._rotary(batch.positions_BQ, batch.length)
        for index, layer in enumerate(self._layers):
            mask = batch.masks[layer.kind] if layer.kind in batch.masks else next(iter(batch.masks.values()))
            hidden_NE = layer.attend(hidden_NE, rotation, mask, batch, index, self._arithmetic)
            hidden_NE = layer.feed_forward(hidden_NE, self._arithmetic)
        return hidden_NE


class _Layer:
    def __init__(self, layer: nn.Module, config: PreTrainedConfig, kind: str | None) -> None:
        self.kind = kind
        self._queries: int = config.num_attention_heads
        self._keys: int = config.num_key_value_heads
        self._joined = _join(layer, ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])
        self._output = _aligned(layer.get_parameter("self_attn.o_proj.weight"))
        self.dim: int = self._output.shape[1] // self._queries
        self._gate_up = _join(layer, ["mlp.gate_proj", "mlp.up_proj"])
        self._activation = layer.get_submodule("mlp.act_fn")
        self._down = _aligned(layer.get_parameter("mlp.down_proj.weight"))
        eps: float = config.rms_norm_eps
        self._before_attention = _Norm(layer.get_parameter("input_layernorm.weight"), eps)
        self._before_mlp = _Norm(layer.get_parameter("post_attention_layernorm.weight"), eps)
        names = dict(layer.named_parameters())
        self._head_norms = [
            _Norm(names[f"self_attn.{which}_norm.weight"], eps) for which in "qk" if _HEAD_NORM in names
        ]

    def products(self) -> set[Product]:
        """Returns the products of the layer."""
        joined: set[Product] = {
            ("linear", weight.shape[1], weight.shape[0], bias is not None)
            for weight, bias in (self._joined, self._gate_up)
        }
        added: set[Product] = {
            ("add_product", weight.shape[1], weight.shape[0], False) for weight in (self._output, self._down)
        }
        return joined | added

    def attend(
        self,
        hidden_NE: torch.Tensor,
        rotation: Rotation,
        mask: torch.Tensor,
        batch: ForwardBatch,
        index: int,
        arithmetic: Arithmetic,
    ) -> torch.Tensor:
        """``hidden_NE`` plus its attention over the rows' KV, which this extends."""
        rows, tokens = batch.ids_BQ.shape
        heads = self._queries + self._keys
        projected = arithmetic.linear(self._before_attention(hidden_NE), *self._joined)
        projected = projected[: rows * tokens].view(rows, tokens, -1, self.dim)
        rotated = projected[:, :, :heads]
        if self._head_norms:
            parts = rotated[:, :, : self._queries], rotated[:, :, self._queries :]
            rotated = torch.cat([norm(part) for norm, part in zip(self._head_norms, parts, strict=True)], dim=2)
        cos, sin = rotation
        rotated = torch.addcmul(rotated * cos, rotated.roll(self.dim // 2, -1), sin)
        keys, values = batch.cache.update(
            rotated[:, :, self._queries :].transpose(1, 2), projected[:, :, heads:].transpose(1, 2), index
        )
        query = rotated[:, :, : self._queries].transpose(1, 2)
        if tokens == 1:
            # Query heads that share keys go as more queries of one head: nothing of the KV is repeated.
            query = query.reshape(rows, self._keys, -1, self.dim)
        else:
            keys, values = (part.repeat_interleave(self._queries // self._keys, dim=1) for part in (keys, values))
        positions = batch.positions_BQ[:, None, :, None]
        attended = arithmetic.attend(query, keys, values, mask, positions, batch.bounds)
        attended = attended.reshape(rows, self._queries, tokens, self.dim).transpose(1, 2)
        return arithmetic.add_product(hidden_NE, attended.reshape(rows * tokens, -1), self._output)

    def feed_forward(self, hidden_NE: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
        """``hidden_NE`` plus its MLP."""
        gate, up = arithmetic.linear(self._before_mlp(hidden_NE), *self._gate_up).chunk(2, dim=-1)
        return arithmetic.add_product(hidden_NE, arithmetic.gated(self._activation, gate, up), self._down)


class _Norm:
    """Root mean square normalisation over the last dimension."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self._weight = weight
        self._eps = eps

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(values, self._weight.shape, self._weight, self._eps)


class _Rotations:
    """Rotary embeddings by position, from a table that grows with the longest row."""

    def __init__(self, rotary: nn.Module, like: torch.Tensor) -> None:
        self._rotary = rotary
        self._like = like
        self._cos = self._sin = like.new_empty(0, 1, 1)

    def __call__(self, positions_BQ: torch.Tensor, length: int) -> Rotation:
        """Cosine and sine ``[B, Q, 1, D]``; all positions are below ``length``."""
        if length > len(self._cos):
            self._tabulate(2 * length)
        return self._cos[positions_BQ], self._sin[positions_BQ]

    def _tabulate(self, length: int) -> None:
        cos, sin = self._rotary(self._like, torch.arange(length, device=self._like.device)[None])
        half = cos.shape[-1] // 2
        # Rotating by halves negates the first: the sign goes to the sine, and a roll is left.
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        self._cos, self._sin = cos[0, :, None], sin[0, :, None]


def _aligned(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter, moved where torch would allocate it: a file's place in memory may suit no vector, and kernels
    choose by that too."""
    if parameter.data_ptr() % _ALIGNMENT:
        parameter.data = parameter.data.clone()
    return parameter


def _join(layer: nn.Module, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One weight and bias for several projections of one input, which become views of them."""
    joined: list[torch.Tensor | None] = []
    for kind in ("weight", "bias"):
        parts = [getattr(layer.get_submodule(name), kind) for name in names]
        if any(part is None for part in parts):
            joined.append(None)
            continue
        whole, start = torch.cat(parts), 0
        for name, part in zip(names, parts, strict=True):
            view = whole[start : start + len(part)]
            setattr(layer.get_submodule(name), kind, nn.Parameter(view, requires_grad=False))
            start += len(part)
        joined.append(whole)
    weight, bias = joined
    assert weight is not None
    return weight, bias
