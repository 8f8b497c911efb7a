"""Masters: the weights in float32, where the forward uses them in fewer bits or on another device.

An update is often smaller than what a weight of 16 bits can show, so the optimiser changes the masters, and the weights
are rounded from them. The gradients of all passes of a step are added up in float32 too, beside the masters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from agentrl.learner.ranks import Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from agentrl.learner.shards import Shards

__all__ = ["Masters"]


@dataclass
class Masters:
    """The weights that training changes, in float32.

    ::

        masters = Masters()
        masters.take(model, torch.device("cuda"), torch.bfloat16)
        loss.backward()          # the gradients arrive at the masters
        optimiser.step()         # of masters.parameters
        masters.publish()        # the model's weights follow
    """

    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    """What the optimiser changes, by the names of ``named_parameters``: a master, or the weight itself where it
    needs none."""
    _weights: dict[str, nn.Parameter] = field(default_factory=dict)
    """The model's weights that have a master."""
    shards: Shards | None = None
    """Where the model is spread over ranks: the masters are this rank's shares of its weights then."""

    def take(
        self,
        model: PreTrainedModel,
        device: torch.device,
        dtype: torch.dtype,
        *,
        offload: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        """Put the float32 ``model`` on ``device``, its weights as ``dtype``, and keep masters of what is trained.

        Masters are made where the weights are no longer float32, and with ``offload`` in any case: they are then in the
        CPU's memory, with the gradients and what the optimiser keeps of them. Buffers keep their type, because rotary
        frequencies have too few digits in 16 bits. No weight is held twice in float32 on one device.

        Where ``ranks`` train together the model is spread over them, and the masters are this rank's shares.
        """
        if ranks is not None and ranks.together:
            from agentrl.learner.shards import Shards

            self._take_shards(model, Shards(model, ranks, dtype, offload=offload))
            return
        for name, weight in model.named_parameters():
            exact = weight.data
            weight.data = exact.to(device, dtype, copy=offload)
            if not weight.requires_grad:
                continue
            if dtype.itemsize >= 4 and not offload:
                self.parameters[name] = weight
                continue
            master = nn.Parameter(exact.to("cpu" if offload else device, torch.float32))
            weight.register_post_accumulate_grad_hook(_collecting(master))  # type: ignore[no-untyped-call]
            self.parameters[name], self._weights[name] = master, weight
        model.to(device)  # type: ignore[arg-type]

    def _take_shards(self, model: nn.Module, shards: Shards) -> None:
        self.shards = shards
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                master = nn.Parameter(_local(weight.detach()))  # the same memory
                weight.register_post_accumulate_grad_hook(_collecting(master))  # type: ignore[no-untyped-call]
                self.parameters[name] = master

    def apart(self) -> Iterator[nn.Parameter]:
        """Yield the masters that are not the model's weights themselves."""
        for name in self._weights:
            yield self.parameters[name]

    def tensors(self) -> dict[str, Tensor]:
        """The float32 values by name: those that a checkpoint keeps."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take up ``values``, whole tensors by every name of ``parameters``, and publish them."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name] if self.shards is None else self.shards.share(values[name]))
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Round the model's weights from their masters."""
        for name, weight in self._weights.items():
            weight.copy_(self.parameters[name])


def _collecting(master: nn.Parameter) -> Callable[[Tensor], None]:
    """A hook that moves the gradient of a weight to its master."""

    def collect(weight: Tensor) -> None:
        assert weight.grad is not None
        gradient = _local(weight.grad).to(master.device)
        weight.grad = None
        if master.grad is None:
            master.grad = gradient.to(master.dtype)
        else:
            master.grad += gradient

    return collect


def _local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this rank has; any other tensor as it is."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
