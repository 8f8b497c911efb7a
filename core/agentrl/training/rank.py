"""A rank of the learner: the object in each process that trains a model together with others.

All ranks are asked the same, in the same order, and each does its share of it; what comes of it is the same in all, and
the first one tells it. ``agentrl.training.ranked_learner`` asks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from agentrl.algorithms.building import build_algorithm
from agentrl.config.models import Config
from agentrl.environ import DISABLE_PLUGINS
from agentrl.inference.contract import Adapter, Weights
from agentrl.inference.shared_memory import MemoryAddress, Place, write
from agentrl.learner.contract import Lease, Scores, StepResult, Targets, TrainBatch
from agentrl.learner.learner import Learner
from agentrl.learner.ranks import Ranks
from agentrl.machine import find_device
from agentrl.plugins import Plugins
from agentrl.training.leading import send_weights

if TYPE_CHECKING:
    import numpy.typing as npt

    from agentrl.learner.contract import Ints

__all__ = ["AdapterSays", "CarriedTensor", "LearnerRank", "Says"]

_CARRIED = 1 << 25
"""Bytes of tensors that one answer carries, where no single tensor is larger."""


class AdapterSays(NamedTuple):
    """What an adapter is."""

    rank: int
    scale: float
    targets: tuple[str, ...]


class Says(NamedTuple):
    """What a rank says of its model, which is the same in all ranks."""

    version: int
    rows_because: str | None
    merges_at_start: bool
    adapter: AdapterSays | None


@dataclass(frozen=True, slots=True)
class CarriedTensor:
    """A tensor on its way between two processes."""

    name: str
    dtype: str
    """By torch's name without the prefix."""
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> CarriedTensor:
        """``tensor`` under ``name``; its numbers are copied only where they are on a GPU, or not in one piece."""
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, dtype=np.uint8)
        return cls(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), data)

    def tensor(self) -> torch.Tensor:
        """The tensor, in the memory that ``data`` is in."""
        dtype = getattr(torch, self.dtype)
        if not self.data.size:
            return torch.empty(self.shape, dtype=dtype)
        return torch.from_numpy(self.data).view(dtype).reshape(self.shape)


class _Some:
    """The next tensors of ``passing``, as many as one answer carries."""

    def __init__(self, passing: Iterator[tuple[str, torch.Tensor]]) -> None:
        self._passing = passing
        self.ended = False
        """Whether there are no others, once these have been passed through."""

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        size = 0
        for name, tensor in self._passing:
            yield name, tensor
            size += tensor.nbytes
            if size >= _CARRIED:
                return
        self.ended = True


class LearnerRank:
    """One of ``size`` processes in which a ``Learner`` is; ``rank`` counts them from 0."""

    def __init__(self, *, config: Config, rank: int, size: int, disabled: Sequence[str] = ()) -> None:
        """``config`` is that of the run, with the device of this rank; ``disabled`` are the plugins that it leaves out.

        Nothing is loaded yet: see ``load``.
        """
        self._config = config
        self._rank = rank
        self._size = size
        self._plugins = Plugins(environ={DISABLE_PLUGINS: ",".join(disabled)})
        self._ranks = Ranks.alone()
        self._learner: Learner | None = None
        self._lent: dict[int, Lease] = {}
        self._passing: dict[tuple[int, int], Iterator[tuple[str, torch.Tensor]]] = {}
        """Tensors of which some have been carried."""

    async def is_there(self) -> None:
        """Answer, whatever else is going on."""

    def free_address(self, host: str) -> str:
        """Where ranks can meet on this machine, which they reach as ``host``: see ``Ranks.free_address``."""
        return Ranks.free_address(host)

    def load(self, folder: Path, address: str | None) -> Says:
        """Load the model in ``folder`` together with the other ranks, which meet at ``address``, a host and a port.

        Without an address it is the only one. Raises as ``Learner`` does.
        """
        self._plugins.load()
        config, training = self._config, self._config.training
        loss = build_algorithm(self._plugins, config.algorithm, updates=training.minibatches).loss
        if address is not None:
            device = find_device(training.device, "training.device")
            self._ranks = Ranks.join(self._rank, self._size, address, device, training.timeout)
        self._learner = Learner(folder, training, loss, config.seed, self._ranks)
        return self._says()

    def load_state(self, folder: Path) -> Says:
        """See ``Learner``."""
        self._own.load_state(folder)
        return self._says()

    def go_back(self, folder: Path, version: int) -> Says:
        """See ``Learner``."""
        self._own.go_back(folder, version)
        return self._says()

    def step(self, batch: TrainBatch) -> tuple[Says, StepResult | None]:
        """See ``Learner``; the result is that of the first rank alone."""
        result = self._own.step(batch)
        return self._says(), result if self._rank == 0 else None

    def score(self, targets: Targets, paths: Sequence[Ints], without_adapter: bool) -> Scores | None:
        """See ``Learner``; the scores are told by the first rank alone."""
        beneath = self._own.without_adapter() if without_adapter else contextlib.nullcontext()
        with beneath:
            scores = self._own.score(targets, paths)
        return scores if self._rank == 0 else None

    def set_aside(self) -> None:
        """See ``Learner``."""
        self._own.set_aside()

    def bring_back(self) -> None:
        """See ``Learner``."""
        self._own.bring_back()

    def save(self, folder: Path) -> None:
        """See ``Learner``."""
        self._own.save(folder)

    def save_state(self, folder: Path) -> None:
        """See ``Learner``."""
        self._own.save_state(folder)

    def lend(self, number: int, borrower: str) -> None:
        """Lend the weights to ``borrower``, as the loan of that ``number``."""
        self._lent[number] = self._own.lend(borrower).__enter__()

    def give_back(self, number: int) -> None:
        """End a loan."""
        for key in [key for key in self._passing if key[0] == number]:
            del self._passing[key]
        if (lease := self._lent.pop(number, None)) is not None:
            lease.__exit__(None, None, None)

    def of_weights(self, number: int, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of lent weights; the first rank tells what it returns."""
        result = getattr(self._lent[number], method)(*args, **kwargs)
        return result if self._rank == 0 else None

    def send(self, number: int, target: str, /, **arguments: Any) -> Any:
        """Call the function ``target`` with lent weights in the first rank, which tells what it returns."""
        return send_weights(self._lent[number], self._ranks, target, arguments)

    def of_adapter(self, number: int, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the adapter of lent weights; the first rank tells what it returns."""
        result = getattr(_adapter(self._lent[number]), method)(*args, **kwargs)
        return result if self._rank == 0 else None

    def carry(
        self, number: int, passing: int, what: str, memory: MemoryAddress | None = None, start: int = 0
    ) -> tuple[list[CarriedTensor] | list[Place], bool]:
        """The next tensors of those that ``what`` yields of the loan ``number``, and whether there are more.

        ``what`` is ``tensors`` of the weights, or ``adapter.tensors`` or ``adapter.merged``; ``passing`` is another
        number each time that they are passed through. The tensors are told by the first rank alone: where it has
        written them in ``memory``, from the byte ``start`` on, or without that they themselves.
        """
        key = number, passing
        if key not in self._passing:
            owner, _, method = what.rpartition(".")
            lent = self._lent[number]
            self._passing[key] = getattr(_adapter(lent) if owner else lent, method)()
        some = _Some(self._passing[key])
        carried: list[CarriedTensor] | list[Place] = []
        if self._rank:
            for _ in some:  # All ranks put each tensor together.
                pass
        elif memory is None:
            carried = [CarriedTensor.of(name, tensor) for name, tensor in some]
        else:
            carried = write(some, memory, start)
        if some.ended:
            del self._passing[key]
        return carried, not some.ended

    @property
    def _own(self) -> Learner:
        assert self._learner is not None, "a rank is asked to load the model before anything else"
        return self._learner

    def _says(self) -> Says:
        learner = self._own
        adapter = learner.adapter
        told = None if adapter is None else AdapterSays(adapter.rank, adapter.scale, tuple(adapter.targets))
        return Says(learner.version, learner.rows_because, learner.merges_at_start, told)


def _adapter(lent: Weights) -> Adapter:
    adapter = lent.adapter
    assert adapter is not None, "whoever asks has been told that there is one"
    return adapter
