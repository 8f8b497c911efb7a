"""Shards: a model whose weights are spread over ranks, each of which keeps a share of every tensor (FSDP2).

A rank has rows ``[rank · n, (rank + 1) · n)`` of each tensor, ``n`` being the number of rows over that of ranks,
rounded up. While a layer is computed its weights are put together on every rank, in the type that is computed in, and
its gradients are added up over the ranks as each gets its share of them: nothing is divided, because the weights of a
batch are shares of the whole step (Zhao et al. 2023, "PyTorch FSDP").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from agentrl.errors import ConfigError
from agentrl.learner.ranks import Ranks

__all__ = ["Shards"]

Made = TypeVar("Made")


class Shards:
    """``model``, in float32 or more, spread over ``ranks``; computed in ``dtype``.

    The shares of what is trained stay in the type that they come in, and are the masters of the weights that are
    computed with; those of what is frozen are kept as ``dtype``. With ``offload`` all of them are in the CPU's memory.
    Nothing is asked of other ranks here. Raises ``ConfigError`` for a model that cannot be spread.
    """

    def __init__(self, model: PreTrainedModel, ranks: Ranks, dtype: torch.dtype, *, offload: bool = False) -> None:
        self.ranks = ranks
        self.dtype = dtype
        """What is computed in."""
        _check(model)
        for weight in model.parameters():
            if not weight.requires_grad:
                weight.data = weight.data.to(dtype)
        self._model = model
        self._root = _Root(model)
        exact = next((weight.dtype for weight in model.parameters() if weight.requires_grad), dtype)
        precision = MixedPrecisionPolicy(
            param_dtype=None if dtype == exact else dtype, reduce_dtype=exact, cast_forward_inputs=False
        )
        policy = CPUOffloadPolicy() if offload else OffloadPolicy()
        for unit in [*_layers(model), self._root]:
            # A rank that is the only one frees nothing by giving a layer's weights up between forward and backward.
            keeps = unit is self._root or ranks.size == 1
            fully_shard(
                unit, mesh=ranks.mesh, reshard_after_forward=not keeps, mp_policy=precision, offload_policy=policy
            )
            _add_up_gradients(cast(FSDPModule, unit), ranks.size)

    def through(self, work: Callable[[], Made]) -> Made:
        """Return what ``work`` returns, which computes with the model once, while whole weights are there for it."""
        made: Made = self._root(work)
        if not torch.is_grad_enabled():
            self.drop()
        return made

    def drop(self) -> None:
        """Give the whole weights up that are still there after a forward pass without a backward pass."""
        for module in self._root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def whole(self, weight: Tensor) -> Tensor:
        """Return a weight of the model whole, as it is computed with, on every rank; all ask for it at once."""
        return self.ranks.whole(weight, self.dtype)

    def share(self, whole: Tensor) -> Tensor:
        """Return the rows of a whole tensor that this rank keeps."""
        rows = -(-len(whole) // self.ranks.size)
        return whole[self.ranks.rank * rows : (self.ranks.rank + 1) * rows]

    def weights(self) -> dict[str, Tensor]:
        """What is trained, by its names, sharded: torch knows what of it the other ranks have."""
        return {name: each.detach() for name, each in self._model.named_parameters() if each.requires_grad}

    def sharded(self, share: Tensor, weight: Tensor) -> Tensor:
        """Return this rank's ``share`` of a tensor that is spread as ``weight`` is."""
        return DTensor.from_local(
            share, self.ranks.mesh, (Shard(0),), run_check=False, shape=weight.shape, stride=weight.stride()
        )


class _Root(nn.Module):
    """What FSDP takes for a model: its forward pass is whatever is to be computed with the real one."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


def _layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The layers, each of which has its weights for itself; none where some share theirs."""
    found = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    inner = {id(below) for each in found for below in each.modules() if below is not each}
    outer = [each for each in found if id(each) not in inner]
    within = [id(weight) for each in outer for weight in each.parameters()]
    inside = {id(module) for each in outer for module in each.modules()}
    outside = {
        id(weight)
        for module in model.modules()
        if id(module) not in inside
        for weight in module.parameters(recurse=False)
    }
    if len(set(within)) == len(within) and not outside & set(within):
        yield from outer


def _add_up_gradients(unit: FSDPModule, size: int) -> None:
    """Have gradients of all ranks added, and not divided; those that a rank has none of count as 0."""
    if size > 1:
        unit.set_force_sum_reduction_for_comms(True)
        unit.set_gradient_divide_factor(1.0)
    else:
        unit.set_custom_reduce_scatter(_InPlace())  # type: ignore[arg-type]
    unit.set_reduce_scatter_unused_params(True, recurse=False)


class _InPlace:
    """What FSDP asks for memory for the gradients of all ranks, and then for their sum: one and the same where a rank
    is the only one, so that nothing is copied."""

    def __init__(self) -> None:
        self._gradients: Tensor | None = None

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return new memory, and that again when asked next."""
        found, self._gradients = self._gradients, None
        if found is None:
            found = self._gradients = torch.empty(*size, dtype=dtype, device=device)
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("a rank that is the only one sends nothing")


def _check(model: PreTrainedModel) -> None:
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ConfigError(
            f"training.processes: torch {torch.__version__} cannot spread a model over several processes as is needed",
            fix="install torch 2.13 or newer, or set training.processes=1",
            key="training.processes",
        )
    scalar = next((name for name, weight in model.named_parameters() if weight.ndim == 0), None)
    if scalar is not None:
        raise ConfigError(
            f"training.processes: {type(model).__name__} has the weight {scalar}, a single number, which cannot be "
            "spread over processes",
            fix="set training.processes=1",
            key="training.processes",
        )
