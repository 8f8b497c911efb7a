"""States that are set aside: kept in the CPU's memory while somebody else needs that of the learner's device.

They are what only an optimiser's step needs: its moments, gradients that were added up, and float32 masters. The
weights stay, since they are lent to an engine and scored meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from agentrl.learner.masters import Masters

__all__ = ["Aside"]


class Aside:
    """Sets the states that are on one device aside, and brings them back with the same bits.

    ::

        aside = Aside(masters, lambda: [optimiser.states()], device)
        aside.set_aside()        # the device has their memory
        aside.bring_back()        # before the next step
    """

    def __init__(
        self, masters: Masters, states: Callable[[], Iterable[Mapping[Tensor, dict[str, Any]]]], device: torch.device
    ) -> None:
        """``states`` returns those of torch's optimisers, by parameter. What is not on ``device`` stays where it is."""
        self._masters = masters
        self._states = states
        self._device = device
        self._moved: list[Tensor] | None = None
        """The masters that are aside; ``None`` while nothing is."""

    @property
    def is_aside(self) -> bool:
        """Whether the states are aside now."""
        return self._moved is not None

    @torch.no_grad()
    def set_aside(self) -> None:
        """Move the states to the CPU's memory. Where they are aside, do nothing."""
        if self.is_aside:
            return
        for parameter, state in self._moments():
            if parameter.device.type == self._device.type:
                _replace_all(state, _HOST)
        self._moved = [each for each in self._masters.apart() if each.device.type == self._device.type]
        for master in self._moved:
            _move(master, _HOST)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # What the allocator keeps is nobody else's.

    @torch.no_grad()
    def bring_back(self) -> None:
        """Move the states back to their device. Where they are there, do nothing."""
        for master in self._moved or ():
            _move(master, self._device)
        for parameter, state in self._moments() if self.is_aside else ():
            _replace_all(state, parameter.device)
        self._moved = None

    def _moments(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for states in self._states():
            yield from states.items()


_HOST = torch.device("cpu")


def _replace_all(state: dict[str, Any], target: torch.device) -> None:
    for name, value in state.items():
        if isinstance(value, Tensor) and value.ndim:  # A count of steps is a number, wherever it is.
            state[name] = value.to(target, copy=True)


def _move(master: Tensor, target: torch.device) -> None:
    for held in (master, master.grad):
        if held is not None:
            # Of a tensor that several processes share, this one's part.
            own = held.to_local() if hasattr(held, "to_local") else held
            own.data = own.data.to(target, copy=True)
