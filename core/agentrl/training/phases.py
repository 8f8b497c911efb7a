"""The memory of a device that learner and engine take turns on: each phase of a step takes its own, and both must fit.

While the learner steps, the engine sleeps and keeps little. While the engine samples, the learner keeps its weights
alone, and the states of its optimiser are in the CPU's memory.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ASLEEP", "engine_share", "needs_of_engine", "sampling_phase", "set_aside"]

ASLEEP = 1_500_000_000
"""Bytes that an engine keeps while it sleeps: its libraries, its graphs and the buffers of its processes."""
WORKING = 2_000_000_000
"""Bytes that an engine takes beside weights and KV cache: activations of its largest batch, and graphs."""
SPARE = 0.05
"""The share of the free memory that is left to nobody: what the plan does not know of has to be somewhere."""


def needs_of_engine(weights: int, kv: int) -> int:
    """Returns the least bytes that an engine takes while it is awake, with ``weights`` and a cache of ``kv`` bytes."""
    return weights + kv + WORKING


def sampling_phase(learner: Mapping[str, int], optimiser: Mapping[str, int], engine: int) -> dict[str, int]:
    """Returns what there is on the device while the engine samples, by what for.

    ``learner`` is what the learner has there while it steps, of which the parts of ``optimiser`` are aside, and what a
    pass takes is free.
    """
    stays = {name: size for name, size in learner.items() if name not in optimiser and not name.startswith("a pass of")}
    return {**stays, "engine": engine}


def set_aside(optimiser: Mapping[str, int]) -> dict[str, int]:
    """Returns what is in the CPU's memory meanwhile. There are no gradients between two steps."""
    return {f"{name}, aside": size for name, size in optimiser.items() if name != "gradients"}


def engine_share(sampling: Mapping[str, int], free: int) -> int:
    """Returns the bytes that the engine may take while it is awake: what ``sampling`` leaves of the ``free`` ones."""
    others = sum(size for name, size in sampling.items() if name != "engine")
    return max(0, int(free * (1 - SPARE)) - others)
