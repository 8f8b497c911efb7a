"""The parts of a model between its matrix products, computed on the CPU with fewer passes over memory.

A norm, a gated activation and a rotary embedding are a handful of operations each, and on the CPU each operation reads
and writes the whole of its tensors. Here such a part goes over its rows a block at a time, so that a block stays in the
processor's cache from the first operation to the last, and its gradient is written out instead of being recorded
operation by operation, so that nothing but its inputs is kept for it.

``fuse`` puts these in the place of a model's own parts. What a part is is found by what it computes, on random numbers;
a part that is none of these stays as it is. Products stay modules of their own, so that adapters may wrap them.

Axes: N rows, E features of a row; H heads, T positions, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

__all__ = ["Fused", "fuse", "gated", "gated_halves", "rms_norm", "rotate"]

BLOCK = 1 << 17
"""Numbers of a tensor that are worked on at a time: half a megabyte in float32, of which some fit a core's cache."""
ROTARY = "apply_rotary_pos_emb"
"""The function by which the attention of all families rotates queries and keys."""
_TOLERANCE = 1e-5
"""By how much a part may differ from the one that it replaces, on numbers of about 1."""


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, width))
    return (slice(start, start + step) for start in range(0, rows, step))


# Norms


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """Return ``x / sqrt(mean(x²) + eps) · (weight + offset)`` over the last axis, in the type of ``x``."""
    normed: Tensor = _RMSNorm.apply(x, weight, eps, offset)  # type: ignore[no-untyped-call]
    return normed


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        x_NE = x.reshape(-1, x.shape[-1])
        exact = torch.promote_types(x.dtype, torch.float32)
        scale_E = weight.to(exact) + offset if offset else weight.to(exact)
        normed_NE = torch.empty_like(x_NE)
        inverse_N1 = torch.empty((len(x_NE), 1), dtype=exact)
        for rows in _blocks(*x_NE.shape):
            values = x_NE[rows].to(exact)
            inverse = torch.linalg.vector_norm(values, dim=-1, keepdim=True, out=inverse_N1[rows])
            inverse.square_().div_(x_NE.shape[1]).add_(eps).rsqrt_()
            if exact == x.dtype:
                torch.mul(values, inverse, out=normed_NE[rows]).mul_(scale_E)
            else:
                normed_NE[rows] = values.mul_(inverse).mul_(scale_E)
        ctx.save_for_backward(x, weight, inverse_N1)
        ctx.offset = offset
        return normed_NE.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse_N1 = ctx.saved_tensors
        width, exact = x.shape[-1], inverse_N1.dtype
        x_NE, grad_NE = x.reshape(-1, width), grad.reshape(-1, width)
        scale_E = weight.to(exact) + ctx.offset
        grad_x_NE = torch.empty_like(x_NE)
        grad_weight_E = torch.zeros(width, dtype=exact)
        for rows in _blocks(*x_NE.shape):
            inverse, coming = inverse_N1[rows], grad_NE[rows].to(exact)
            unit = x_NE[rows].to(exact) * inverse
            product = coming * unit
            grad_weight_E += product.sum(0)
            along = torch.mv(product, scale_E).div_(width)[:, None]
            made = torch.mul(coming, scale_E, out=product).addcmul_(unit, along, value=-1)
            grad_x_NE[rows] = made.mul_(inverse)
        return grad_x_NE.view(x.shape), grad_weight_E.to(weight.dtype), None, None


# Gated activations


class _Activation(NamedTuple):
    """``forward(x, out)`` and ``backward(grad, x, out)``, which gives the gradient of ``x``."""

    forward: Callable[[Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]


_aten: Any = torch.ops.aten


def _gelu(approximate: str) -> _Activation:
    return _Activation(
        lambda x, out: cast(Tensor, _aten.gelu.out(x, approximate=approximate, out=out)),
        lambda grad, x, out: cast(
            Tensor, _aten.gelu_backward.grad_input(grad, x, approximate=approximate, grad_input=out)
        ),
    )


_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], _Activation]] = {
    "silu": (
        functional.silu,
        _Activation(
            lambda x, out: cast(Tensor, _aten.silu.out(x, out=out)),
            lambda grad, x, out: cast(Tensor, _aten.silu_backward.grad_input(grad, x, grad_input=out)),
        ),
    ),
    "gelu": (functional.gelu, _gelu("none")),
    "gelu_tanh": (lambda x: functional.gelu(x, approximate="tanh"), _gelu("tanh")),
}


def gated(kind: str, gate: Tensor, up: Tensor) -> Tensor:
    """Return the activation ``kind`` of ``gate``, times ``up``; both and the result have one shape."""
    product: Tensor = _Gated.apply(kind, gate, up)  # type: ignore[no-untyped-call]
    return product


def gated_halves(kind: str, joint: Tensor) -> Tensor:
    """As ``gated``, of the first and the second half of the last axis of ``joint``."""
    product: Tensor = _GatedHalves.apply(kind, joint)  # type: ignore[no-untyped-call]
    return product


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: str, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.kind = kind
        return _gate(kind, gate, up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        _gate_backward(ctx.kind, grad, gate, up, grad_gate, grad_up)
        return None, grad_gate, grad_up


class _GatedHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: str, joint: Tensor) -> Tensor:
        ctx.save_for_backward(joint)
        ctx.kind = kind
        return _gate(kind, *joint.chunk(2, dim=-1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (joint,) = ctx.saved_tensors
        grad_joint = torch.empty_like(joint)
        _gate_backward(ctx.kind, grad, *joint.chunk(2, dim=-1), *grad_joint.chunk(2, dim=-1))
        return None, grad_joint


def _gate(kind: str, gate: Tensor, up: Tensor) -> Tensor:
    made = torch.empty(gate.shape, dtype=gate.dtype)
    gate_NI, up_NI, made_NI = (_rows(x) for x in (gate, up, made))
    activation = _ACTIVATIONS[kind][1]
    for rows in _blocks(*made_NI.shape):
        activation.forward(gate_NI[rows], made_NI[rows]).mul_(up_NI[rows])
    return made


def _gate_backward(kind: str, grad: Tensor, gate: Tensor, up: Tensor, grad_gate: Tensor, grad_up: Tensor) -> None:
    """Write the gradients into the last two."""
    grad_NI = grad.reshape(-1, grad.shape[-1])
    gate_NI, up_NI, grad_gate_NI, grad_up_NI = (_rows(x) for x in (gate, up, grad_gate, grad_up))
    activation = _ACTIVATIONS[kind][1]
    for rows in _blocks(*gate_NI.shape):
        coming = grad_NI[rows]
        activation.backward(coming * up_NI[rows], gate_NI[rows], grad_gate_NI[rows])
        activation.forward(gate_NI[rows], grad_up_NI[rows]).mul_(coming)


def _rows(values: Tensor) -> Tensor:
    return values.view(-1, values.shape[-1])


# Rotary embeddings


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys (…, heads, positions, size) as ``apply_rotary_pos_emb`` of the Llama family does.

    ``cos`` and ``sin`` have the shape (rows, positions, size), and get an axis for the heads at ``unsqueeze_dim``.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    rotated = tuple(_Rotate.apply(x, cos, sin) for x in (query, key))  # type: ignore[no-untyped-call]
    return rotated[0], rotated[1]


class _Rotate(torch.autograd.Function):
    """``x · cos + (-x₂, x₁) · sin``, where ``x₁`` and ``x₂`` are the halves of a head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        rotated = torch.empty_like(x, dtype=torch.result_type(x, cos))  # laid out in memory as x is
        half = x.shape[-1] // 2
        (x1, x2), (y1, y2), (cos1, cos2), (sin1, sin2) = (
            (values[..., :half], values[..., half:]) for values in (x, rotated, cos, sin)
        )
        torch.mul(x1, cos1, out=y1).addcmul_(x2, sin1, value=-1)
        torch.mul(x2, cos2, out=y2).addcmul_(x1, sin2)
        return rotated

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        grad_x = torch.empty_like(grad, dtype=ctx.dtype)
        half = grad.shape[-1] // 2
        (g1, g2), (x1, x2), (cos1, cos2), (sin1, sin2) = (
            (values[..., :half], values[..., half:]) for values in (grad, grad_x, cos, sin)
        )
        torch.mul(g1, cos1, out=x1).addcmul_(g2, sin2)
        torch.mul(g2, cos2, out=x2).addcmul_(g1, sin1, value=-1)
        return grad_x, None, None


# Models


class Fused:
    """The parts of a model that were replaced."""

    def __init__(self) -> None:
        self._originals: list[tuple[nn.Module, type[nn.Module]]] = []

    def __bool__(self) -> bool:
        return bool(self._originals)

    def replace(self, module: nn.Module, kind: type[nn.Module]) -> None:
        """Make ``module`` compute as ``kind``, a class derived from its own."""
        self._originals.append((module, type(module)))
        module.__class__ = kind

    def undo(self) -> None:
        """Give every module its own class back."""
        for module, kind in reversed(self._originals):
            module.__class__ = kind
        self._originals.clear()


@torch.no_grad()
def fuse(model: PreTrainedModel) -> Fused:
    """Replace the parts of ``model`` that have a fused counterpart here, which they use on the CPU.

    The weights, their names and the classes that modules are instances of stay. Every class of a part is compared with
    its counterpart on random numbers once; whoever calls this compares the whole model.
    """
    fused = Fused()
    if model.device.type != "cpu":
        return fused
    kinds: dict[tuple[object, ...], type[nn.Module] | None] = {}
    for module in list(model.modules()):
        key = (type(module), *(type(child) for child in module.children()))
        if key not in kinds:
            kinds[key] = _counterpart(module)
        kind = kinds[key]
        if kind is not None:
            fused.replace(module, kind)
    return fused


def _counterpart(module: nn.Module) -> type[nn.Module] | None:
    """The class that computes what ``module`` computes, or ``None``."""
    for candidate in (_norm, _mlp, _rotating):
        kind = candidate(module)
        if kind is not None:
            return kind
    return None


def _norm(module: nn.Module) -> type[nn.Module] | None:
    names = [name for name, _ in module.named_parameters()]
    name = next((name for name in ("variance_epsilon", "eps") if isinstance(getattr(module, name, None), float)), None)
    if (
        not _takes_one(module)
        or names != ["weight"]
        or name is None
        or list(module.children())
        or module.get_parameter("weight").ndim != 1
    ):
        return None
    weight = module.get_parameter("weight")
    x = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    expected = module(x)
    for offset in (0.0, 1.0):
        if _equal(rms_norm(x, weight, getattr(module, name), offset), expected):
            return _norm_class(type(module), name, offset)
    return None


def _norm_class(base: type[nn.Module], eps: str, offset: float) -> type[nn.Module]:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        # Families normalise in float32 whatever comes, and in float64 that would show.
        if not hidden_states.is_cpu or hidden_states.dtype == torch.float64:
            normed: Tensor = base.forward(self, hidden_states)
            return normed
        return rms_norm(hidden_states, self.weight, getattr(self, eps), offset)

    return _derived(base, forward)


def _mlp(module: nn.Module) -> type[nn.Module] | None:
    """A gated MLP, whose inner products are modules of their own, two or one for both."""
    children = dict(module.named_children())
    activation = children.get("act_fn", children.get("activation_fn"))
    inner = next((name for name in ("gate_proj", "gate_up_proj") if name in children), None)
    needed = {"down_proj", "up_proj"} if inner == "gate_proj" else {"down_proj"}
    if not _takes_one(module) or activation is None or inner is None or not needed <= children.keys():
        return None
    x = torch.linspace(-4, 4, 257)
    shown = activation(x)
    kind = next((name for name, (plain, _) in _ACTIVATIONS.items() if _equal(plain(x), shown)), None)
    weight = getattr(children[inner], "weight", None)
    if kind is None or not isinstance(weight, Tensor):
        return None
    base = type(module)

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        made: Tensor
        if not hidden_states.is_cpu:
            made = base.forward(self, hidden_states)
        elif inner == "gate_proj":
            made = self.down_proj(gated(kind, self.gate_proj(hidden_states), self.up_proj(hidden_states)))
        else:
            made = self.down_proj(gated_halves(kind, self.gate_up_proj(hidden_states)))
        return made

    tried = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    return _derived(base, forward) if _equal(forward(module, tried), module(tried)) else None


def _rotating(module: nn.Module) -> type[nn.Module] | None:
    """An attention that rotates by the function of its own file: the same code, with ``rotate`` in its place."""
    forward = inspect.unwrap(type(module).forward)
    if not isinstance(forward, FunctionType) or ROTARY not in forward.__code__.co_names:
        return None
    theirs = forward.__globals__.get(ROTARY)
    if theirs is None or not _rotates(theirs):
        return None

    def rotating(query: Tensor, *others: Any, **named: Any) -> Any:
        return (rotate if query.is_cpu else theirs)(query, *others, **named)

    ours = FunctionType(
        forward.__code__,
        {**forward.__globals__, ROTARY: rotating},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    ours.__kwdefaults__ = forward.__kwdefaults__
    return _derived(type(module), ours)


def _rotates(function: Callable[..., Any]) -> bool:
    """Whether ``function`` computes what ``rotate`` does."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, 5, 8, generator=generator) for heads in (4, 2))
    cos, sin = (torch.randn(1, 5, 8, generator=generator) for _ in range(2))
    try:
        expected = function(query, key, cos, sin)
    except Exception:  # another function of that name
        return False
    return all(_equal(one, other) for one, other in zip(rotate(query, key, cos, sin), expected, strict=True))


def _takes_one(module: nn.Module) -> bool:
    """Whether the module takes hidden states and nothing else."""
    return len(inspect.signature(type(module).forward).parameters) == 2


def _derived(base: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    return type(f"Fused{base.__name__}", (base,), {"forward": forward, "__module__": __name__})


def _equal(one: Tensor, other: Tensor) -> bool:
    tolerance = _TOLERANCE if one.dtype in (torch.float32, torch.float64) else 1e-2
    return one.shape == other.shape and torch.allclose(one, other.to(one.dtype), rtol=tolerance, atol=tolerance)
