"""The state of a learner of several ranks: saved by all of them, and taken up by as many, by others or by one.

It holds, beside what a learner of one process keeps in a file, the masters of a model that is stored in 16 bits, and
AdamW's moments, by the names of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agentrl.learner.masters import Masters
from agentrl.learner.optimiser import Optimiser
from agentrl.learner.parts import read_parts, read_tensors, write_parts
from agentrl.learner.ranks import Ranks

__all__ = ["load_spread", "load_whole", "save_spread"]

_MASTER = "master"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_spread(state: Mapping[str, Any], masters: Masters, optimiser: Optimiser, parts: Path, *, exact: bool) -> None:
    """Write what all ranks have into the folder ``parts``, with ``state``, of which that of rank 0 is kept.

    ``exact`` says whether the masters are to be written too. Raises as ``write_parts`` does.
    """
    shards = masters.shards
    assert shards is not None
    weights, moments = shards.weights(), optimiser.moments()
    tensors = {f"{_MASTER}.{name}": weight for name, weight in weights.items()} if exact else {}
    for name, held in moments.items():
        tensors |= {f"{kind}.{name}": shards.sharded(held[kind], weights[name]) for kind in _MOMENTS}
    small = {
        **state,
        "steps": {name: float(held["step"]) for name, held in moments.items()},
        "bad_in_a_row": optimiser.bad_in_a_row,
        "exact": exact,
    }
    write_parts(small, tensors, parts, shards.ranks)


def load_spread(parts: Path, masters: Masters, optimiser: Optimiser, ranks: Ranks) -> dict[str, Any]:
    """Take up what ``save_spread`` wrote, on as many ranks or others, and return the ``state`` that was given to it.

    Raises as ``read_parts`` and ``read_tensors`` do.
    """
    small, shards = read_parts(parts, ranks), masters.shards
    tensors: dict[str, Tensor] = {}
    moments: dict[str, dict[str, Tensor]] = {}
    weights = masters.tensors() if shards is None else shards.weights()
    if small["exact"]:
        tensors |= {f"{_MASTER}.{name}": weight for name, weight in weights.items()}
    for name, step in small["steps"].items():
        shares = {kind: torch.zeros_like(masters.parameters[name].detach()) for kind in _MOMENTS}
        moments[name] = {"step": torch.tensor(step), **shares}
        for kind, share in shares.items():
            tensors[f"{kind}.{name}"] = share if shards is None else shards.sharded(share, weights[name])
    if tensors:
        read_tensors(tensors, parts, ranks)
    masters.publish()
    optimiser.load_moments(moments, small["bad_in_a_row"])
    return small


def load_whole(state: Mapping[str, Any], masters: Masters, optimiser: Optimiser) -> None:
    """Take this rank's share of the optimiser's state that a learner of one process has saved."""
    shards = masters.shards
    assert shards is not None
    saved = state["adamw"]["state"]
    moments: dict[str, dict[str, Tensor]] = {}
    for index, name in enumerate(optimiser.names):
        if index in saved:
            shares = {kind: shards.share(saved[index][kind]).clone() for kind in _MOMENTS}
            moments[name] = {"step": saved[index]["step"], **shares}
    optimiser.load_moments(moments, state["bad_in_a_row"])
