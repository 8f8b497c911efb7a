"""The forward of the Llama family in a third of the operations.

A small model's decoding step is bound by how many operations it launches, and each of them also passes
the interpreter's lock back and forth with whoever else runs in the process. So projections of one input
are one product, and norms and residual sums are fused. The weights stay the model's: its parameters
become views of the joined ones, so that an update in place reaches both.

Shapes as elsewhere, and ``N`` tokens (``B * Q``), ``E`` hidden size, ``H`` key-value heads, ``G`` query heads
to each, ``D`` head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from agentrl.inference.engine.network import Batch

__all__ = ["LeanNetwork"]

_FAMILY = {"llama", "mistral", "qwen2", "qwen3"}
_HEAD_NORM = "self_attn.q_norm.weight"
_STATIC_ROPES = {"default", "linear", "llama3", "yarn"}


Rotation = tuple[torch.Tensor, torch.Tensor]


class LeanNetwork:
    """A Llama, Mistral, Qwen2 or Qwen3 model, computed from its own weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        config, trunk = model.config, model.base_model
        self._embedding = trunk.get_submodule("embed_tokens")
        self._rotary = _Rotations(trunk.get_submodule("rotary_emb"), self._embedding.get_parameter("weight"))
        kinds = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
        self._layers = [
            _Layer(trunk.get_submodule(f"layers.{index}"), config, kind) for index, kind in enumerate(kinds)
        ]
        self._norm = _Norm(trunk.get_parameter("norm.weight"), config.rms_norm_eps)
        self._head = model.get_submodule("lm_head")

    @staticmethod
    def suits(model: PreTrainedModel) -> bool:
        """Whether the model is of the family, with plain weights and rotations that know no row's length."""
        if model.config.model_type not in _FAMILY:
            return False
        rope = getattr(model.config, "rope_parameters", None) or {}
        modules = dict(model.named_modules())
        return (
            rope.get("rope_type", "default") in _STATIC_ROPES
            and all(type(module) is nn.Linear for name, module in modules.items() if name.endswith("_proj"))
            and all(module.bias is None for name, module in modules.items() if name.endswith(("o_proj", "down_proj")))
        )

    def hidden(self, batch: Batch) -> None:
        """Write the batch's KV only."""
        self._trunk(batch)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Write it, and say what comes after each row's last token."""
        last_BE = self._trunk(batch).view(*batch.ids_BQ.shape, -1)[:, -1]
        logits_BV: torch.Tensor = self._head(self._norm(last_BE))
        return logits_BV

    def _trunk(self, batch: Batch) -> torch.Tensor:
        """Hidden states ``[N, E]`` before the last norm."""
        hidden_NE: torch.Tensor = self._embedding(batch.ids_BQ.flatten())
        rotation = self._rotary(batch.positions_BQ, batch.length)
        for index, layer in enumerate(self._layers):
            mask = batch.masks[layer.kind] if layer.kind in batch.masks else next(iter(batch.masks.values()))
            hidden_NE = layer.mix(layer.attend(hidden_NE, rotation, mask, batch, index))
        return hidden_NE


class _Layer:
    def __init__(self, layer: nn.Module, config: PreTrainedConfig, kind: str | None) -> None:
        self.kind = kind
        self._queries: int = config.num_attention_heads
        self._keys: int = config.num_key_value_heads
        self._joined = _join(layer, ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])
        self._output = layer.get_parameter("self_attn.o_proj.weight")
        self._dim: int = self._output.shape[1] // self._queries
        self._gate_up = _join(layer, ["mlp.gate_proj", "mlp.up_proj"])
        self._activation = layer.get_submodule("mlp.act_fn")
        self._down = layer.get_parameter("mlp.down_proj.weight")
        eps: float = config.rms_norm_eps
        self._before = _Norm(layer.get_parameter("input_layernorm.weight"), eps)
        self._between = _Norm(layer.get_parameter("post_attention_layernorm.weight"), eps)
        names = dict(layer.named_parameters())
        self._head_norms = [
            _Norm(names[f"self_attn.{which}_norm.weight"], eps) for which in "qk" if _HEAD_NORM in names
        ]

    def attend(
        self, hidden_NE: torch.Tensor, rotation: Rotation, mask: torch.Tensor, batch: Batch, index: int
    ) -> torch.Tensor:
        """``hidden`` plus attention over the rows' KV, which it extends."""
        rows, tokens = batch.ids_BQ.shape
        heads = self._queries + self._keys
        projected = functional.linear(self._before(hidden_NE), *self._joined).view(rows, tokens, -1, self._dim)
        rotated = projected[:, :, :heads]
        if self._head_norms:
            parts = rotated[:, :, : self._queries], rotated[:, :, self._queries :]
            rotated = torch.cat([norm(part) for norm, part in zip(self._head_norms, parts, strict=True)], dim=2)
        cos, sin = rotation
        rotated = torch.addcmul(rotated * cos, rotated.roll(self._dim // 2, -1), sin)
        keys, values = batch.cache.update(
            rotated[:, :, self._queries :].transpose(1, 2), projected[:, :, heads:].transpose(1, 2), index
        )
        query = rotated[:, :, : self._queries].transpose(1, 2)
        if tokens == 1:
            # Query heads that share keys go as more queries of one head: nothing of the KV is repeated.
            query = query.reshape(rows, self._keys, -1, self._dim)
        else:
            keys, values = (part.repeat_interleave(self._queries // self._keys, dim=1) for part in (keys, values))
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        attended = attended.reshape(rows, self._queries, tokens, self._dim).transpose(1, 2)
        return torch.addmm(hidden_NE, attended.reshape(rows * tokens, -1), self._output.t())

    def mix(self, hidden_NE: torch.Tensor) -> torch.Tensor:
        """``hidden`` plus the feed-forward of it."""
        gate, up = functional.linear(self._between(hidden_NE), *self._gate_up).chunk(2, dim=-1)
        return torch.addmm(hidden_NE, self._activation(gate).mul_(up), self._down.t())


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
        # Rotating by halves negates the first: the sign goes to the sine, and what is left is a roll.
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        self._cos, self._sin = cos[0, :, None], sin[0, :, None]


def _join(layer: nn.Module, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One weight and bias for several projections of one input, which keep views of theirs."""
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
