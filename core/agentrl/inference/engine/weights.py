"""New weights in the place of the old ones: all of them, or none."""

from __future__ import annotations

import torch
from torch import nn

from agentrl.errors import BackendError
from agentrl.inference.contract import Weights

__all__ = ["load_weights"]


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Copy ``weights`` into the parameters of ``model``; a tied parameter may come under any of its names.

    Raises ``BackendError``, with the model untouched, where a name is unknown or missing or a shape differs.
    """
    targets = model.state_dict(keep_vars=True)
    new = dict(weights.tensors())
    _check(targets, new, {id(parameter) for parameter in model.parameters()})
    with torch.no_grad():
        for name, tensor in new.items():
            targets[name].copy_(tensor)


def _check(targets: dict[str, torch.Tensor], new: dict[str, torch.Tensor], parameters: set[int]) -> None:
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
