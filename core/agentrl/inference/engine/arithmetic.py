"""The arithmetic of ``FusedNetwork``: matrix products, the gate's activation, and attention.

``QuickArithmetic`` leaves all of it to torch, which chooses its kernels by the shapes of a batch: what a token's
numbers are to the last bit then depends on what is computed beside it. ``InvariantArithmetic`` gives a token the same
bits whatever else is in the batch, whether its prefix was computed whole, in pieces, token by token or long ago, and
however long the block is. It does so by keeping to shapes in which torch's kernels add up in one order:

- Products take rows in blocks. A block's rows are padded to a multiple of the smallest size, and larger sizes serve
  only where their rows have the bits of the smallest.
- Attention takes a multiple of so many queries a head. Its columns are any multiple of ``GRAIN`` for a query whose
  position is below a bound. For one beyond it they are whole tiles, the last of which may be cut to fewer columns. A
  query's own position says which of the two it is.

Which sizes these are depends on the machine's kernels, the shape and the number of threads. They are found once in a
process, on random numbers: another order of additions shows in a few thousand of them. Operations on single elements
are such that have one result wherever an element lies; torch's ``silu`` has two, one for whole vectors and one for the
rest of them.

Shapes: ``N`` tokens, ``B`` rows, ``H`` heads, ``M`` queries of a head, ``L`` columns of the block, ``D`` head
dimension, ``I`` features of the MLP.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Literal, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional

from agentrl.errors import BackendError
from agentrl.inference.engine.cache import GRAIN, round_up

__all__ = [
    "ACTIVATIONS",
    "Arithmetic",
    "InvariantArithmetic",
    "Kind",
    "Product",
    "QuickArithmetic",
    "is_transposed",
    "prefers_columns",
    "transposed",
]

Kind = Literal["linear", "add_product"]


class Product(NamedTuple):
    """A product of a model."""

    kind: Kind
    inner: int
    outer: int
    biased: bool
    transposed: bool
    """Whether the weight lies in memory as ``[inner, outer]``."""

    @classmethod
    def of(cls, kind: Kind, weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
        """Returns the product with ``weight`` ``[outer, inner]``."""
        return cls(kind, weight.shape[1], weight.shape[0], bias is not None, is_transposed(weight))


def is_transposed(weight: torch.Tensor) -> bool:
    """Returns whether ``weight`` ``[outer, inner]`` lies in memory as ``[inner, outer]``."""
    return weight.stride(0) == 1 and weight.shape[1] > 1


def prefers_columns(weight: torch.Tensor) -> bool:
    """Returns whether products of few rows with a weight like this are quickest where it lies column by column.

    Measured on the CPU in float32: products of 64 rows with weights that are not in a cache take 0.7 of the time, those
    of 256 rows and more the same.
    """
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def transposed(weight: torch.Tensor) -> torch.Tensor:
    """Returns ``weight`` ``[outer, inner]`` in the order of memory in which it is multiplied soonest."""
    if not prefers_columns(weight) or is_transposed(weight):
        return weight
    return weight.t().contiguous().t()


_BLOCKS = (16, 32, 64, 128)
"""Candidates for the fewest rows of a product."""
_LARGEST = 2048
"""The most rows of a product."""
_TILE = 512
"""Torch's fused attention kernel takes so many columns at once, in order; one tile more, masked, changes nothing."""
_SHORT = (384, 256, 128, 64, 32)
"""Candidates for how many columns may be attended to in any multiple of ``GRAIN``."""
_TAILS = (256, 192, 128, 64, 32, 0)
"""Candidates for how many columns the last of several tiles may be cut to."""
_FEWEST_QUERIES = (2, 4, 8, 16, 32)
"""Candidates for the fewest queries of a head."""
_QUERY_BLOCK = 32
"""Torch's kernel takes so many queries at once where there are fewer than 192."""
_MOST_QUERIES = 128


class Arithmetic(Protocol):
    """What ``FusedNetwork`` leaves to another."""

    def columns(self, tokens: int) -> int:
        """Returns how many columns of a block attention should see, so that it sees ``tokens``."""
        ...

    def padded(self, hidden_NE: torch.Tensor) -> torch.Tensor:
        """Returns hidden states with as many rows more, at the end, as products need."""
        ...

    def linear(self, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Returns the product of padded rows with ``weight.T``, plus ``bias``."""
        ...

    def add_product(self, hidden_NE: torch.Tensor, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Returns padded ``hidden_NE`` plus the product of ``values``, padded or not, with ``weight.T``."""
        ...

    def gated(self, activation: nn.Module, gate_NI: torch.Tensor, up_NI: torch.Tensor) -> torch.Tensor:
        """Returns the activation of ``gate_NI``, times ``up_NI``."""
        ...

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        bounds: tuple[int, int],
        scale: float,
        softcap: float | None,
    ) -> torch.Tensor:
        """Returns the attention ``[B, H, M, D]`` of ``query`` over ``keys`` and ``values`` ``[B, H, L, D]``.

        ``mask`` is ``[B, 1, M or 1, L]``; ``positions``, ``[B, 1, M or 1, 1]``, are those of the queries, and
        ``bounds`` the lowest and the highest of them. Scores are multiplied by ``scale``, and then capped by
        ``softcap`` where it is not ``None``.
        """
        ...


class QuickArithmetic:
    """What torch does by itself."""

    def columns(self, tokens: int) -> int:
        """See ``Arithmetic``."""
        return round_up(tokens)

    def padded(self, hidden_NE: torch.Tensor) -> torch.Tensor:
        """See ``Arithmetic``."""
        return hidden_NE

    def linear(self, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See ``Arithmetic``."""
        return functional.linear(values, weight, bias)

    def add_product(self, hidden_NE: torch.Tensor, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See ``Arithmetic``."""
        return torch.addmm(hidden_NE, values, weight.t())

    def gated(self, activation: nn.Module, gate_NI: torch.Tensor, up_NI: torch.Tensor) -> torch.Tensor:
        """See ``Arithmetic``."""
        activated: torch.Tensor = activation(gate_NI)
        return activated.mul_(up_NI)

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        bounds: tuple[int, int],
        scale: float,
        softcap: float | None,
    ) -> torch.Tensor:
        """See ``Arithmetic``."""
        if softcap is None:
            return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
        scores = torch.matmul(query, keys.transpose(2, 3)).mul_(scale / softcap).tanh_().mul_(softcap).add_(mask)
        return torch.matmul(scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype), values)


class InvariantArithmetic:
    """Arithmetic in float32 on the CPU in which a token's bits depend on its own prefix and the weights alone.

    ``products`` are those of the model, ``heads`` its key-value heads, ``group`` the queries of each of them, ``dim``
    their size, ``activations`` the names of its MLPs' activations. Raises ``BackendError`` where no tried shape of this
    machine's kernels has that property, or an activation is none of ``ACTIVATIONS``. It is used with the number of
    torch threads with which it was made.
    """

    def __init__(self, products: set[Product], heads: int, group: int, dim: int, activations: set[str]) -> None:
        unknown = sorted(activations - ACTIVATIONS.keys())
        if unknown or len(activations) > 1:
            raise _varies(f"the activation {', '.join(unknown or sorted(activations))} depends on a number's place")
        (self._gate,) = (ACTIVATIONS[name] for name in activations)
        threads = torch.get_num_threads()
        self._threads = threads
        self._block = max(_block_of(product, threads) for product in products)
        self._short, self._tail, self._queries = _attention_shapes(heads, group, dim, threads)

    def columns(self, tokens: int) -> int:
        """See ``Arithmetic``."""
        if tokens <= self._short:
            return round_up(tokens)
        rest = tokens % _TILE if tokens > _TILE else _TILE
        return tokens - rest + round_up(rest) if rest <= self._tail else _multiple(tokens, _TILE)

    def padded(self, hidden_NE: torch.Tensor) -> torch.Tensor:
        """See ``Arithmetic``."""
        return _with_rows(hidden_NE, _multiple(len(hidden_NE), self._block))

    def linear(self, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See ``Arithmetic``."""
        pieces = self._pieces(Product.of("linear", weight, bias), len(values))
        if len(pieces) == 1:
            return functional.linear(values, weight, bias)
        return torch.cat([functional.linear(values[piece], weight, bias) for piece in pieces])

    def add_product(self, hidden_NE: torch.Tensor, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See ``Arithmetic``."""
        values, factor = _with_rows(values, len(hidden_NE)), weight.t()
        pieces = self._pieces(Product.of("add_product", weight, None), len(values))
        if len(pieces) == 1:
            return torch.addmm(hidden_NE, values, factor)
        return torch.cat([torch.addmm(hidden_NE[piece], values[piece], factor) for piece in pieces])

    def gated(self, activation: nn.Module, gate_NI: torch.Tensor, up_NI: torch.Tensor) -> torch.Tensor:
        """See ``Arithmetic``. The activation is the one that this was made with."""
        return self._gate(gate_NI).mul_(up_NI)

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        bounds: tuple[int, int],
        scale: float,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """See ``Arithmetic``. There is no ``softcap``."""
        if query.shape[2] > _MOST_QUERIES:
            starts = range(0, query.shape[2], _MOST_QUERIES)
            parts = [slice(start, start + _MOST_QUERIES) for start in starts]
            return torch.cat(
                [self._attend_part(query, keys, values, mask, positions, part, scale) for part in parts], dim=2
            )
        lowest, highest = bounds
        if highest < self._short:
            return self._attend(query, keys, values, mask, scale)
        missing = self.columns(keys.shape[2]) - keys.shape[2]
        if missing:
            keys_long, values_long = (functional.pad(part, (0, 0, 0, missing)) for part in (keys, values))
            mask_long = functional.pad(mask, (0, missing), value=-torch.inf)
            far = self._attend(query, keys_long, values_long, mask_long, scale)
        else:
            far = self._attend(query, keys, values, mask, scale)
        if lowest >= self._short:
            return far
        short = slice(self._short)
        near = self._attend(query, keys[:, :, short], values[:, :, short], mask[..., short], scale)
        return torch.where(positions < self._short, near, far)

    def _attend_part(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        part: slice,
        scale: float,
    ) -> torch.Tensor:
        """``attend`` for some of the queries, over no more columns than these see."""
        positions = positions[:, :, part]
        bounds = int(positions.min()), int(positions.max())
        seen = slice(self.columns(bounds[1] + 1))
        keys, values, mask = keys[:, :, seen], values[:, :, seen], mask[:, :, part, seen]
        return self.attend(query[:, :, part], keys, values, mask, positions, bounds, scale)

    def _attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
    ) -> torch.Tensor:
        queries = query.shape[2]
        missing = _multiple(queries, self._queries) - queries
        if not missing:
            return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
        if mask.shape[2] > 1:
            mask = functional.pad(mask, (0, 0, 0, missing))
        query = functional.pad(query, (0, 0, 0, missing))
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
        return attended[:, :, :queries]

    def _pieces(self, product: Product, rows: int) -> list[slice]:
        return _cut(product, rows, self._block, self._threads)


def _silu(gate: torch.Tensor) -> torch.Tensor:
    return torch.div(gate, gate.neg().exp_().add_(1))


def _gelu_tanh(gate: torch.Tensor) -> torch.Tensor:
    """``x / 2 * (1 + tanh(u))`` is ``x / (1 + exp(-2 u))``; see ``torch.nn.functional.gelu`` for ``u``."""
    inner = gate.pow(3).mul_(0.044715).add_(gate).mul_(-2.0 * math.sqrt(2.0 / math.pi))
    return torch.div(gate, inner.exp_().add_(1))


ACTIVATIONS = {"silu": _silu, "swish": _silu, "gelu_pytorch_tanh": _gelu_tanh}
"""The activations of gates, made of operations that have one result wherever a number lies."""


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of


def _with_rows(values: torch.Tensor, rows: int) -> torch.Tensor:
    missing = rows - len(values)
    return functional.pad(values, (0, 0, 0, missing)) if missing else values


# Products


@lru_cache(4096)
def _cut(product: Product, rows: int, block: int, threads: int) -> list[slice]:
    """``rows``, a multiple of ``block``, in pieces of sizes whose rows have the bits of ``block`` rows."""
    sizes = [size for size in _sizes(block) if size <= rows]
    pieces, start = [], 0
    while start < rows:
        size = next(
            size for size in sizes if size <= rows - start and (size == block or _same(product, size, block, threads))
        )
        pieces.append(slice(start, start + size))
        start += size
    return pieces


def _sizes(block: int) -> list[int]:
    """The sizes to try, largest first."""
    counts = (count << doubled for count in (1, 3) for doubled in range(_LARGEST.bit_length()))
    return sorted((block * count for count in counts if block * count <= _LARGEST), reverse=True)


@cache
def _block_of(product: Product, threads: int) -> int:
    """The fewest rows of a product in which a row's bits do not depend on its place and its neighbours."""
    for block in _BLOCKS:
        trial = _Trial(product, block)
        whole = trial.product(slice(None))
        if all(torch.equal(trial.product(trial.rolled(by)), whole[trial.rolled(by)]) for by in (1, 5, block // 2)):
            return block
    raise _varies(f"a row's product with a matrix of {product.outer} x {product.inner} depends on the other rows")


@cache
def _same(product: Product, rows: int, block: int, threads: int) -> bool:
    """Whether a product of ``rows`` rows has the bits of products of ``block`` rows."""
    trial = _Trial(product, rows)
    blocks = [trial.product(slice(start, start + block)) for start in range(0, rows, block)]
    return torch.equal(trial.product(slice(None)), torch.cat(blocks))


class _Trial:
    """A product of random numbers."""

    def __init__(self, product: Product, rows: int) -> None:
        generator, outer = torch.Generator().manual_seed(0), product.outer
        self._rows = rows
        self._values = torch.randn(rows, product.inner, generator=generator)
        weight = torch.randn(outer, product.inner, generator=generator)
        self._weight = transposed(weight) if product.transposed else weight
        self._bias = torch.randn(outer, generator=generator) if product.biased else None
        self._added = torch.randn(rows, outer, generator=generator) if product.kind == "add_product" else None

    def rolled(self, by: int) -> torch.Tensor:
        return torch.arange(self._rows).roll(by)

    def product(self, which: slice | torch.Tensor) -> torch.Tensor:
        if self._added is None:
            return functional.linear(self._values[which], self._weight, self._bias)
        return torch.addmm(self._added[which], self._values[which], self._weight.t())


# Attention


@cache
def _attention_shapes(heads: int, group: int, dim: int, threads: int) -> tuple[int, int, int]:
    """Up to how many columns any multiple of ``GRAIN`` serves, the same for a last tile, and the fewest queries."""
    trial = _AttentionTrial(heads, dim)
    for fewest in _FEWEST_QUERIES:
        if fewest < min(group, _QUERY_BLOCK) or not trial.holds(fewest, _whole_tiles()):
            continue
        for short in _SHORT:
            if trial.holds(fewest, _multiples(0, short)):
                tail = next(tail for tail in _TAILS if trial.holds(fewest, _multiples(_TILE, tail)))
                return short, tail, fewest
    raise _varies(f"attention with heads of {dim} numbers depends on how many queries and columns there are")


def _varies(reason: str) -> BackendError:
    return BackendError(
        f"inference.backend.reproducible: with this machine's torch {torch.__version__}, {reason}",
        fix="set it to false or auto, or try another inference.backend.threads",
    )


class _AttentionTrial:
    """Attention of random queries to random keys and values."""

    def __init__(self, heads: int, dim: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._query = torch.randn(3, heads, 1, dim, generator=generator)
        self._keys, self._values = (torch.randn(3, heads, 2 * _TILE, dim, generator=generator) for _ in range(2))

    def holds(self, fewest: int, served: list[tuple[int, list[int]]]) -> bool:
        """Whether each position of ``served`` gets the same bits from all the lengths beside it."""
        return all(self._holds_at(position, lengths, fewest) for position, lengths in served)

    def _holds_at(self, position: int, lengths: list[int], fewest: int) -> bool:
        expected = self._attended(position, lengths[0], fewest)
        alone = self._attended(position, lengths[0], fewest, rows=1)
        return torch.equal(alone, expected[:1]) and all(
            bool((self._attended(position, length, queries) == expected[:, :, :1]).all())
            for length in lengths
            for queries in range(fewest, _QUERY_BLOCK + 1, fewest)
        )

    def _attended(self, position: int, length: int, queries: int, rows: int = 3) -> torch.Tensor:
        query = self._query[:rows].expand(-1, -1, queries, -1).contiguous()
        blocked = torch.arange(length) > position
        mask = torch.zeros(length).masked_fill_(blocked, -torch.inf).expand(rows, 1, queries, length)
        keys, values = self._keys[:rows, :, :length], self._values[:rows, :, :length]
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


def _multiples(start: int, most: int) -> list[tuple[int, list[int]]]:
    """Positions from ``start``, and the lengths that serve each: multiples of ``GRAIN`` up to ``most`` beyond
    ``start``, and whole tiles where ``start`` is beyond the first."""
    positions = sorted({0, most // 2 - 1, most - GRAIN - 3} - {-1}) if most else []
    tiles = [start + _TILE] if start else []
    return [
        (start + position, [start + length for length in range(round_up(position + 1), most + 1, GRAIN)] + tiles)
        for position in positions
        if position >= 0
    ]


def _whole_tiles() -> list[tuple[int, list[int]]]:
    return [(position, [_TILE, 2 * _TILE]) for position in (0, _TILE // 2, _TILE - 5)]
