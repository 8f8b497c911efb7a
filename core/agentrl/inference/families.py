"""What a decoder-only language model computes, read from its config and its modules.

``describe`` lists the features of a model of a known family: where its norms stand and what they do, how its heads are
joined, normalised, rotated, capped and masked, and by what it multiplies. A forward that is written for the features
then serves every family. Whoever uses a description compares its own forward with the model's before trusting it:
``describe`` refuses what it does not know, but cannot see everything that a ``forward`` does.

Shapes: ``E`` hidden size, ``H`` query heads, ``K`` key-value heads, ``D`` head size, ``I`` features of the MLP, ``V``
vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

__all__ = [
    "FAMILIES",
    "AttentionFeatures",
    "FeedForwardFeatures",
    "LayerFeatures",
    "ModelFeatures",
    "NormFeatures",
    "Undescribed",
    "describe",
]

FAMILIES = frozenset(
    {
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "llama",
        "mistral",
        "olmo",
        "olmo2",
        "olmo3",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    }
)
"""Values of ``model_type`` whose forward is made of these features and nothing else at any length of input."""

_STATIC_ROPES = frozenset({"default", "linear", "llama3", "longrope", "yarn"})
"""Rotations that depend on a token's position alone; those of ``longrope`` do so up to its original length."""
_PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("qkv_proj",))
_GATES = (("gate_proj", "up_proj"), ("gate_up_proj",))
_ACTIVATIONS = ("act_fn", "activation_fn")

NormKind = Literal["rms", "rms_of_one_more", "centred"]


class Undescribed(Exception):
    """The model has something that no feature stands for; the message says what, as a part of a sentence."""


@dataclass(frozen=True, slots=True)
class NormFeatures:
    """A normalisation of the last dimension.

    ``rms`` divides by the root mean square and multiplies by the weight (Zhang and Sennrich 2019); ``rms_of_one_more``
    multiplies by 1 + weight; ``centred`` subtracts the mean first (Ba et al. 2016).
    """

    kind: NormKind
    eps: float
    size: int
    weight: nn.Parameter | None
    """``[size]``; ``None`` where there is none."""

    def factor(self) -> torch.Tensor | None:
        """Returns what the normalised values are multiplied by, ``[size]``, as the weight is now."""
        if self.kind != "rms_of_one_more" or self.weight is None:
            return self.weight
        return (1.0 + self.weight.detach().float()).to(self.weight.dtype)

    def apply(self, values: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
        """Returns ``values`` normalised and multiplied by ``factor``."""
        if self.kind == "centred":
            return functional.layer_norm(values, (self.size,), factor, None, self.eps)
        return functional.rms_norm(values, (self.size,), factor, self.eps)


@dataclass(frozen=True, slots=True)
class AttentionFeatures:
    """Attention of one layer."""

    queries: int
    """``H``."""
    keys: int
    """``K``."""
    dim: int
    """``D``."""
    projections: tuple[nn.Linear, ...]
    """To queries, keys and values, each ``[heads * D, E]``; or one that is all three, in this order."""
    output: nn.Linear
    """``[E, H * D]``."""
    clip: float | None
    """Queries, keys and values are clipped to this size."""
    norms: tuple[NormFeatures, NormFeatures] | None
    """Of queries and keys, before they are rotated: of each head, or, where their size is not ``D``, of all heads."""
    rotates: bool
    """Whether queries and keys are rotated by their positions."""
    scale: float
    """Scores are multiplied by this."""
    softcap: float | None
    """Scores ``s`` become ``softcap * tanh(s / softcap)`` before the mask (Gemma 2)."""


@dataclass(frozen=True, slots=True)
class FeedForwardFeatures:
    """A gated MLP: ``down(activation(gate(x)) * up(x))``."""

    projections: tuple[nn.Linear, ...]
    """``[I, E]`` gate and up; or one that is both, in this order."""
    down: nn.Linear
    """``[E, I]``."""
    activation: nn.Module
    activation_name: str


@dataclass(frozen=True, slots=True)
class LayerFeatures:
    """One layer: ``x += residual * after(attention(before(x)))``, and the same with the MLP."""

    kind: str | None
    """The type of layer by which masks and rotations are chosen; ``None`` where the model has one type."""
    attention: AttentionFeatures
    feed_forward: FeedForwardFeatures
    before_attention: NormFeatures | None
    after_attention: NormFeatures | None
    before_feed_forward: NormFeatures | None
    after_feed_forward: NormFeatures | None
    residual: float


@dataclass(frozen=True, slots=True)
class ModelFeatures:
    """A model, from ids to logits."""

    embedding: nn.Module
    """From ids to hidden states, with a multiplier of its own where it has one."""
    embedding_multiplier: float
    """By what the result is multiplied."""
    layers: tuple[LayerFeatures, ...]
    norm: NormFeatures
    head: nn.Linear
    """``[V, E]``."""
    logits_divisor: float
    logits_softcap: float | None
    """Logits ``z``, divided, become ``softcap * tanh(z / softcap)``."""
    rotary: nn.Module
    """From values and positions, and the kind of layer where ``rotary_by_kind``, to cosines and sines."""
    rotary_by_kind: bool
    longest: int | None
    """Rotations change for the whole input where it is longer than this; ``None`` where they never do."""


def describe(model: PreTrainedModel) -> ModelFeatures:
    """Returns the features of ``model``. Raises ``Undescribed`` where it has others, or is of no known family."""
    config: Any = model.config
    if config.model_type not in FAMILIES:
        raise Undescribed(f"{config.model_type} is none of the families {', '.join(sorted(FAMILIES))}")
    trunk = model.base_model
    _only(trunk, {"embed_tokens", "layers", "norm", "rotary_emb"}, "the model")
    head = _linear(model, "lm_head")
    kinds: list[str | None] = list(getattr(config, "layer_types", None) or [None] * config.num_hidden_layers)
    rotary = trunk.get_submodule("rotary_emb")
    layers = trunk.get_submodule("layers")
    return ModelFeatures(
        embedding=trunk.get_submodule("embed_tokens"),
        embedding_multiplier=float(getattr(trunk, "embedding_multiplier", 1.0)),
        layers=tuple(_layer(layer, config, kind) for layer, kind in zip(_children(layers), kinds, strict=True)),
        norm=_norm(trunk.get_submodule("norm"), config.hidden_size),
        head=head,
        logits_divisor=float(getattr(config, "logits_scaling", 1.0)),
        logits_softcap=getattr(config, "final_logit_softcapping", None),
        rotary=rotary,
        rotary_by_kind="layer_type" in inspect.signature(rotary.forward).parameters,
        longest=_longest(config),
    )


def _layer(layer: nn.Module, config: Any, kind: str | None) -> LayerFeatures:
    norms = {name: child for name, child in layer.named_children() if name.endswith("layernorm")}
    _only(layer, {"self_attn", "mlp", *_NORM_NAMES}, "a layer")
    # A second norm after attention is the MLP's first one, unless the MLP has norms under its own name.
    own = any(name.endswith("feedforward_layernorm") for name in norms)
    names = _NORM_NAMES if own else ("input_layernorm", "", "post_attention_layernorm", "")
    before, after, before_mlp, after_mlp = (
        _norm(norms[name], config.hidden_size) if name in norms else None for name in names
    )
    return LayerFeatures(
        kind=kind,
        attention=_attention(layer.get_submodule("self_attn"), config),
        feed_forward=_feed_forward(layer.get_submodule("mlp"), config),
        before_attention=before,
        after_attention=after,
        before_feed_forward=before_mlp,
        after_feed_forward=after_mlp,
        residual=float(getattr(layer, "residual_multiplier", 1.0)),
    )


_NORM_NAMES = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def _attention(module: Any, config: Any) -> AttentionFeatures:
    projections = _joined(module, _PROJECTIONS)
    _only(module, {"q_norm", "k_norm", "o_proj", *sum(_PROJECTIONS, ())}, "attention")
    output = _linear(module, "o_proj")
    queries, keys = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    dim = output.in_features // queries
    norms = None
    if hasattr(module, "q_norm"):
        sizes = {}
        for name, heads in (("q_norm", queries), ("k_norm", keys)):
            weight = dict(module.get_submodule(name).named_parameters()).get("weight")
            sizes[name] = dim if weight is None else weight.numel()
            if sizes[name] not in (dim, heads * dim):
                raise Undescribed(f"its {name} is of {sizes[name]} numbers, heads are of {dim}")
        norms = _norm(module.q_norm, sizes["q_norm"]), _norm(module.k_norm, sizes["k_norm"])
    return AttentionFeatures(
        queries=queries,
        keys=keys,
        dim=dim,
        projections=projections,
        output=output,
        clip=getattr(config, "clip_qkv", None),
        norms=norms,
        rotates=bool(getattr(module, "use_rope", True)),
        scale=float(module.scaling),
        softcap=getattr(config, "attn_logit_softcapping", None),
    )


def _feed_forward(module: nn.Module, config: Any) -> FeedForwardFeatures:
    activation = next((name for name in _ACTIVATIONS if hasattr(module, name)), None)
    if activation is None:
        raise Undescribed(f"its MLP has none of {', '.join(_ACTIVATIONS)}")
    _only(module, {"down_proj", activation, *sum(_GATES, ())}, "the MLP")
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    return FeedForwardFeatures(
        _joined(module, _GATES), _linear(module, "down_proj"), getattr(module, activation), str(name)
    )


def _joined(module: nn.Module, choices: Iterable[tuple[str, ...]]) -> tuple[nn.Linear, ...]:
    """The projections by whichever names the module has."""
    for names in choices:
        if all(hasattr(module, name) for name in names):
            found = tuple(_linear(module, name) for name in names)
            if len({each.bias is None for each in found}) > 1:
                raise Undescribed(f"only some of {', '.join(names)} have a bias")
            return found
    raise Undescribed(f"{type(module).__name__} has none of {', '.join(' + '.join(names) for names in choices)}")


def _linear(module: nn.Module, name: str) -> nn.Linear:
    found = getattr(module, name, None)
    if type(found) is not nn.Linear:
        raise Undescribed(f"its {name} is {'missing' if found is None else type(found).__name__}, not Linear")
    return found


def _norm(module: nn.Module, size: int) -> NormFeatures:
    """What the module does to a few numbers says which of the kinds it is."""
    parameters = dict(module.named_parameters())
    weight = parameters.pop("weight", None)
    if parameters:
        raise Undescribed(f"{type(module).__name__} has {', '.join(parameters)}")
    eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-5)))
    like = torch.empty(0) if weight is None else weight
    values = torch.linspace(-1.0, 2.0, 3 * size, device=like.device).view(3, size).sin().to(like.dtype)
    kinds: tuple[NormKind, ...] = ("rms", "rms_of_one_more", "centred")
    with torch.no_grad():
        expected = module(values).float()
        for kind in kinds:
            norm = NormFeatures(kind, eps, size, weight)
            found = norm.apply(values, norm.factor()).float()
            if torch.allclose(found, expected, rtol=0.02, atol=0.02):
                return norm
    raise Undescribed(f"{type(module).__name__} is no normalisation that is known")


def _only(module: nn.Module, known: set[str], what: str) -> None:
    """Raise ``Undescribed`` where the module has parts or parameters under other names, unless they have no effect."""
    strange = [
        name
        for name, child in module.named_children()
        if name not in known and not isinstance(child, nn.Dropout | nn.Identity)
    ]
    strange += [name for name, _ in module.named_parameters(recurse=False) if name not in known]
    if strange:
        raise Undescribed(f"{what} has {strange[0]}, which is not known here")


def _longest(config: Any) -> int | None:
    """Up to which length rotations are static. Raises ``Undescribed`` where they depend on the input's length."""
    rope = getattr(config, "rope_parameters", None) or {}
    each = [rope] if "rope_type" in rope else [value for value in rope.values() if isinstance(value, dict)]
    kinds = {value.get("rope_type", "default") for value in each}
    if not kinds <= _STATIC_ROPES:
        raise Undescribed(f"its rotations are {', '.join(sorted(kinds - _STATIC_ROPES))}")
    lengths = [value["original_max_position_embeddings"] for value in each if value.get("rope_type") == "longrope"]
    return min(lengths, default=None)


def _children(module: nn.Module) -> list[nn.Module]:
    return list(module.children())
