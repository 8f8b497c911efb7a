"""Masters: the weights in float32, where the forward uses them in fewer bits or on another device.

An update is often smaller than what a weight of 16 bits can show, so the optimiser changes the masters, and the weights
are rounded from them. The gradients of all passes of a step are added up in float32 too, beside the masters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

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

    def take(self, model: nn.Module, device: torch.device, dtype: torch.dtype, *, offload: bool = False) -> None:
        """Put the float32 ``model`` on ``device``, its weights as ``dtype``, and keep masters of what is trained.

        Masters are made where the weights are no longer float32, and with ``offload`` in any case: they are then in the
        CPU's memory, with the gradients and what the optimiser keeps of them. Buffers keep their type, because rotary
        frequencies have too few digits in 16 bits. No weight is held twice in float32 on one device.
        """
        for name, weight in model.named_parameters():
            exact = weight.data
            weight.data = exact.to(device, dtype, copy=offload)
            if not weight.requires_grad:
                continue
            if dtype == torch.float32 and not offload:
                self.parameters[name] = weight
                continue
            master = nn.Parameter(exact.to("cpu" if offload else device, torch.float32))
            weight.register_post_accumulate_grad_hook(_collecting(master))  # type: ignore[no-untyped-call]
            self.parameters[name], self._weights[name] = master, weight
        model.to(device)

    def apart(self) -> Iterator[nn.Parameter]:
        """Yield the masters that are not the model's weights themselves."""
        for name in self._weights:
            yield self.parameters[name]

    def tensors(self) -> dict[str, Tensor]:
        """The float32 values by name: those that a checkpoint keeps."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take up ``values``, which has every name of ``parameters``, and publish them."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
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
        gradient = weight.grad.to(master.device)
        weight.grad = None
        if master.grad is None:
            master.grad = gradient.to(master.dtype)
        else:
            master.grad += gradient

    return collect
