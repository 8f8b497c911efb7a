"""The forward of a model whose features are known, in a third of the operations of the model's own.

A small model's decoding step is bound by how many operations it launches, and each of them also passes the
interpreter's lock back and forth with the other threads of the process. What is computed follows
``agentrl.inference.families``, from the model's own weights, with joined projections and fused norms.

Shapes: ``B`` rows, ``Q`` tokens a row, ``N`` tokens (``B * Q``), ``L`` columns of the block that attention sees,
``V`` vocabulary, ``E`` hidden size, ``D`` head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from agentrl.inference.engine.arithmetic import (
    Arithmetic,
    InvariantArithmetic,
    Kind,
    Product,
    QuickArithmetic,
    transposed,
)
from agentrl.inference.engine.model import ForwardBatch, irreproducible
from agentrl.inference.families import LayerFeatures, ModelFeatures, NormFeatures, describe

__all__ = ["FusedNetwork"]

_ALIGNMENT = 64
"""Bytes to a multiple of which torch allocates."""

Rotation = tuple[torch.Tensor, torch.Tensor]
Affine = tuple[torch.Tensor, torch.Tensor | None]
"""A weight, and a bias where there is one."""


class FusedNetwork:
    """A model of a known family.

    Its parameters become views of joined weights, so that an update in place reaches both. ``reproducible`` chooses an
    arithmetic in which a token's numbers do not depend on the batch; it is for float32 on the CPU. ``turns`` says
    whether weights lie in memory column by column, which is quicker where they fit no cache, and ``joins`` whether they
    are joined then too, for which each has gaps in its memory. ``settle`` is called whenever some have another place.

    Raises ``Undescribed`` for a model with other features, and ``BackendError`` where ``reproducible`` is asked for and
    torch has no such arithmetic for it here.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        reproducible: bool = False,
        turns: bool = True,
        joins: bool = True,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        features = describe(model)
        self._features = features
        self._rotary = _Rotations(features, model.get_input_embeddings().get_parameter("weight"))
        self._norm = _Norm(features.norm)
        self._layers = []
        for layer in features.layers:
            self._layers.append(_Layer(layer, turns, joins))
            settle()  # Layer by layer, so that no second model is held.
        embedding = features.embedding.get_parameter("weight")
        tied = features.head.weight is embedding  # Rows are looked up in it, which have to lie together.
        self._head = _placed(features.head.weight, turns and joins and not tied), features.head.bias
        settle()
        self.reproducible = reproducible
        self._arithmetic: Arithmetic = self._invariant() if reproducible else QuickArithmetic()

    def columns(self, tokens: int) -> int:
        """See ``Network``."""
        return self._arithmetic.columns(tokens)

    def refresh(self) -> None:
        """See ``Network``."""
        for norm in (self._norm, *(norm for layer in self._layers for norm in layer.norms)):
            norm.refresh()

    def hidden(self, batch: ForwardBatch) -> None:
        """See ``Network``."""
        self._trunk(batch)

    def logits(self, batch: ForwardBatch) -> torch.Tensor:
        """See ``Network``."""
        rows, tokens = batch.ids_BQ.shape
        last_BE = self._trunk(batch)
        if tokens > 1:
            last_BE = self._arithmetic.padded(last_BE[: rows * tokens].view(rows, tokens, -1)[:, -1])
        logits_BV = self._arithmetic.linear(self._norm(last_BE), *self._head)[:rows]
        if self._features.logits_divisor != 1.0:
            logits_BV /= self._features.logits_divisor
        if self._features.logits_softcap is not None:
            logits_BV = logits_BV.div_(self._features.logits_softcap).tanh_().mul_(self._features.logits_softcap)
        return logits_BV

    def _invariant(self) -> InvariantArithmetic:
        layers = self._features.layers
        if any(layer.attention.softcap is not None for layer in layers):
            raise irreproducible("its attention caps its scores, for which torch has no kernel of one order")
        attention = layers[0].attention
        products = {product for layer in self._layers for product in layer.products()}
        products.add(_product("linear", self._head))
        group = attention.queries // attention.keys
        activations = {layer.feed_forward.activation_name for layer in layers}
        return InvariantArithmetic(products, attention.keys, group, attention.dim, activations)

    def _trunk(self, batch: ForwardBatch) -> torch.Tensor:
        """Hidden states ``[N, E]`` before the last norm, perhaps followed by rows that mean nothing."""
        hidden_NE: torch.Tensor = self._features.embedding(batch.ids_BQ.flatten())
        if self._features.embedding_multiplier != 1.0:
            hidden_NE = hidden_NE * self._features.embedding_multiplier
        hidden_NE = self._arithmetic.padded(hidden_NE)
        rotations = self._rotary(batch.positions_BQ, batch.length)
        for index, layer in enumerate(self._layers):
            hidden_NE = layer.attend(hidden_NE, rotations, batch, index, self._arithmetic)
            hidden_NE = layer.feed_forward(hidden_NE, self._arithmetic)
        return hidden_NE


class _Layer:
    def __init__(self, features: LayerFeatures, turns: bool, joins: bool) -> None:
        self._kind = features.kind
        self._residual = features.residual
        attention, feed_forward = features.attention, features.feed_forward
        self._attention = attention
        self._joined = _join(attention.projections, turns, joins)
        self._output = _placed(attention.output.weight, turns), attention.output.bias
        self._gate_up = _join(feed_forward.projections, turns, joins)
        self._activation = feed_forward.activation
        self._down = _placed(feed_forward.down.weight, turns), feed_forward.down.bias
        self._before_attention, self._after_attention, self._before_mlp, self._after_mlp = (
            None if norm is None else _Norm(norm)
            for norm in (
                features.before_attention,
                features.after_attention,
                features.before_feed_forward,
                features.after_feed_forward,
            )
        )
        self._head_norms = [_Norm(norm) for norm in attention.norms or ()]
        own = (self._before_attention, self._after_attention, self._before_mlp, self._after_mlp)
        self.norms = [*(norm for norm in own if norm is not None), *self._head_norms]

    def products(self) -> set[Product]:
        """Returns the products of the layer."""
        last = (self._output, self._after_attention), (self._down, self._after_mlp)
        return {_product("linear", affine) for affine in (*self._joined, *self._gate_up)} | {
            _product("add_product" if self._fuses(after) else "linear", affine) for affine, after in last
        }

    def attend(
        self,
        hidden_NE: torch.Tensor,
        rotations: dict[str | None, Rotation],
        batch: ForwardBatch,
        index: int,
        arithmetic: Arithmetic,
    ) -> torch.Tensor:
        """``hidden_NE`` plus its attention over the rows' KV, which this extends."""
        attention = self._attention
        rows, tokens = batch.ids_BQ.shape
        queries, heads = attention.queries, attention.queries + attention.keys
        values_NE = hidden_NE if self._before_attention is None else self._before_attention(hidden_NE)
        projected = _projected(arithmetic, values_NE, self._joined)[: rows * tokens]
        if attention.clip is not None:
            projected.clamp_(-attention.clip, attention.clip)
        projected = projected.view(rows, tokens, -1, attention.dim)
        rotated = projected[:, :, :heads]
        if self._head_norms:
            parts = zip(self._head_norms, (rotated[:, :, :queries], rotated[:, :, queries:]), strict=True)
            rotated = torch.cat([norm.of_heads(part) for norm, part in parts], dim=2)
        if attention.rotates:
            rotated = _rotated(rotated, rotations[self._kind if self._kind in rotations else None])
        keys, values = batch.cache.update(
            rotated[:, :, queries:].transpose(1, 2), projected[:, :, heads:].transpose(1, 2), index
        )
        query = rotated[:, :, :queries].transpose(1, 2)
        if tokens == 1:
            # Query heads that share keys go as more queries of one head: nothing of the KV is repeated.
            query = query.reshape(rows, attention.keys, -1, attention.dim)
        else:
            keys, values = (part.repeat_interleave(queries // attention.keys, dim=1) for part in (keys, values))
        positions = batch.positions_BQ[:, None, :, None]
        mask = batch.masks[self._kind] if self._kind in batch.masks else next(iter(batch.masks.values()))
        attended = arithmetic.attend(
            query, keys, values, mask, positions, batch.bounds, attention.scale, attention.softcap
        )
        attended = attended.reshape(rows, queries, tokens, attention.dim).transpose(1, 2)
        attended_NE = attended.reshape(rows * tokens, -1)
        return self._added(hidden_NE, attended_NE, self._output, self._after_attention, arithmetic)

    def feed_forward(self, hidden_NE: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
        """``hidden_NE`` plus its MLP."""
        values_NE = hidden_NE if self._before_mlp is None else self._before_mlp(hidden_NE)
        if len(self._gate_up) == 2:
            gate, up = (arithmetic.linear(values_NE, *affine) for affine in self._gate_up)
        else:
            gate, up = arithmetic.linear(values_NE, *self._gate_up[0]).chunk(2, dim=-1)
        gated = arithmetic.gated(self._activation, gate, up)
        return self._added(hidden_NE, gated, self._down, self._after_mlp, arithmetic)

    def _fuses(self, after: _Norm | None) -> bool:
        """Whether the last product of a branch may add to what the branch is added to."""
        return after is None and self._residual == 1.0

    def _added(
        self,
        hidden_NE: torch.Tensor,
        values: torch.Tensor,
        affine: Affine,
        after: _Norm | None,
        arithmetic: Arithmetic,
    ) -> torch.Tensor:
        """``hidden_NE`` plus what the last product of a branch makes of ``values``."""
        weight, bias = affine
        if self._fuses(after):
            return arithmetic.add_product(hidden_NE if bias is None else hidden_NE + bias, values, weight)
        branch_NE = arithmetic.linear(arithmetic.padded(values), weight, bias)
        if after is not None:
            branch_NE = after(branch_NE)
        return torch.add(hidden_NE, branch_NE, alpha=self._residual)


class _Norm:
    """A norm with its factor at hand."""

    def __init__(self, features: NormFeatures) -> None:
        self._features = features
        self._factor = features.factor()

    def refresh(self) -> None:
        """Take over the weight after it has changed in place."""
        self._factor = self._features.factor()

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        return self._features.apply(values, self._factor)

    def of_heads(self, values: torch.Tensor) -> torch.Tensor:
        """Of heads ``[..., heads, D]``: each by itself, or all together, as the norm's size says."""
        if values.shape[-1] == self._features.size:
            return self(values)
        return self(values.flatten(-2)).view(values.shape)


class _Rotations:
    """Rotary embeddings by position, from tables that grow with the longest row."""

    def __init__(self, features: ModelFeatures, like: torch.Tensor) -> None:
        self._rotary = features.rotary
        self._dims = {layer.kind: layer.attention.dim for layer in features.layers if layer.attention.rotates}
        self._kinds: list[str | None] = list(self._dims) if features.rotary_by_kind else [None]
        self._dim = max(self._dims.values(), default=0)
        self._longest = features.longest
        self._like = like
        self._length = 0
        self._tables: dict[str | None, Rotation] = {}

    def __call__(self, positions_BQ: torch.Tensor, length: int) -> dict[str | None, Rotation]:
        """Cosine and sine ``[B, Q, 1, D]`` by kind of layer, ``None`` for all; all positions are below ``length``."""
        if length > self._length:
            self._tabulate(2 * length)
        return {kind: (cos[positions_BQ], sin[positions_BQ]) for kind, (cos, sin) in self._tables.items()}

    def _tabulate(self, length: int) -> None:
        self._length = length
        # Columns are rounded up, and may so go beyond what rotations are defined for; positions do not.
        known = length if self._longest is None else min(length, self._longest)
        positions = torch.arange(known, device=self._like.device)[None]
        for kind in self._kinds if self._dims else []:
            arguments = (positions,) if kind is None else (positions, kind)
            cos, sin = (part[0, :, None].to(self._like.dtype) for part in self._rotary(self._like, *arguments))
            half = cos.shape[-1] // 2
            # Rotating by halves negates the first: the sign goes to the sine, and a roll is left.
            sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
            self._tables[kind] = cos, sin


def _rotated(heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Heads ``[B, Q, heads, D]``, the first numbers of each rotated, as many as the rotation has."""
    cos, sin = rotation
    size = cos.shape[-1]
    if size == heads.shape[-1]:
        return torch.addcmul(heads * cos, heads.roll(size // 2, -1), sin)
    part = heads[..., :size]
    return torch.cat([torch.addcmul(part * cos, part.roll(size // 2, -1), sin), heads[..., size:]], dim=-1)


def _product(kind: Kind, affine: Affine) -> Product:
    weight, bias = affine
    return Product.of(kind, weight, bias if kind == "linear" else None)


def _aligned(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter, moved where torch would allocate it: a file's place in memory may suit no vector, and kernels
    choose by that too."""
    if parameter.data_ptr() % _ALIGNMENT:
        parameter.data = parameter.data.clone()
    return parameter


def _placed(parameter: torch.Tensor, turns: bool) -> torch.Tensor:
    """The parameter, moved to the order of memory in which products with it are quickest, where it ``turns``."""
    if turns:
        parameter.data = transposed(parameter.data)
    return _aligned(parameter)


def _projected(arithmetic: Arithmetic, values_NE: torch.Tensor, affines: Sequence[Affine]) -> torch.Tensor:
    """The projections of one input, side by side."""
    if len(affines) == 1:
        return arithmetic.linear(values_NE, *affines[0])
    return torch.cat([arithmetic.linear(values_NE, *affine) for affine in affines], dim=-1)


def _join(projections: Sequence[nn.Linear], turns: bool, joins: bool) -> list[Affine]:
    """One weight and bias for several projections of one input, which become views of them, where that ``joins``."""
    if len(projections) == 1 or (turns and not joins):
        return [(_placed(each.weight, turns), each.bias) for each in projections]
    joined: list[torch.Tensor | None] = []
    for kind in ("weight", "bias"):
        parts = [getattr(projection, kind) for projection in projections]
        if any(part is None for part in parts):
            joined.append(None)
            continue
        whole, start = torch.cat(parts), 0
        if kind == "weight" and turns:
            whole = transposed(whole)
        for projection, part in zip(projections, parts, strict=True):
            view = whole[start : start + len(part)]
            setattr(projection, kind, nn.Parameter(view, requires_grad=False))
            start += len(part)
        joined.append(whole)
    weight, bias = joined
    assert weight is not None
    return [(weight, bias)]
