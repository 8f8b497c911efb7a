"""The weights while an engine in this process computes with them, and the changes that it is told of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from agentrl.inference.adapter_folder import base_of
from agentrl.inference.sharing.contract import Pause
from agentrl.learner.lending import LentAdapter
from agentrl.learner.policy import Policy

__all__ = ["SharedMemory", "Sharing"]


class SharedMemory:
    """The memory of a policy's weights: an ``agentrl.inference.sharing.contract.SharedWeights``."""

    def __init__(
        self, policy: Policy, source: Path, version: Callable[[], int], borrower: str, pause: Pause, *, turns: bool
    ) -> None:
        """``source`` is the folder of the model, ``version`` tells the policy version of its weights, and ``borrower``,
        which ``pause`` holds still, is who has them, in words."""
        self.borrower = borrower
        self.turns = turns
        """Whether parameters may lie in memory column by column."""
        self.pause = pause
        self.returned = False
        self._policy = policy
        self._source = source
        self._version = version

    @property
    def version(self) -> int:
        """The policy version of the numbers that are in the memory now."""
        return self._version()

    @property
    def adapter(self) -> LentAdapter | None:
        """The adapter that is trained over the weights, which never change then; ``None`` where all are trained."""
        adapter = self._policy.adapter
        return (
            None
            if adapter is None
            else LentAdapter(adapter, self._check, base_of(self._source), _not_scored, self._policy)
        )

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the memory of every parameter, those of an adapter left out."""
        self._check()
        adapter = self._policy.adapter
        if adapter is not None:
            yield from ((name, parameter.detach()) for name, parameter, _ in adapter.plain())
        else:
            yield from ((name, parameter.detach()) for name, parameter in self._policy.model.named_parameters())

    def place(self, name: str, memory: Tensor) -> None:
        """Keep the parameter ``name`` in ``memory`` from now on. Raises ``ValueError`` where that does not fit it."""
        self._check()
        adapter, model = self._policy.adapter, self._policy.model
        named = (each[:2] for each in adapter.plain()) if adapter is not None else model.named_parameters()
        parameter = next((parameter for own, parameter in named if own == name), None)
        if parameter is None:
            raise ValueError(f"the learner's model has no parameter {name}")
        wanted, found = ((each.shape, each.dtype, each.device) for each in (parameter, memory))
        if wanted != found:
            raise ValueError(f"{name} is {wanted} and cannot be kept in memory that is {found}")
        if not (memory.is_contiguous() or (self.turns and memory.ndim == 2 and memory.t().is_contiguous())):
            raise ValueError(f"{name} cannot lie in memory with the strides {memory.stride()}")
        parameter.data = memory

    def give_back(self) -> None:
        """End the sharing. Safe to call twice."""
        self.returned = True

    def _check(self) -> None:
        if self.returned:
            raise RuntimeError(f"{self.borrower} used the learner's weights after it had given them back")


class Sharing:
    """Whom the weights are shared with, who is held still while they change."""

    def __init__(self) -> None:
        self._with: SharedMemory | None = None
        self._changes = False
        """Whether a change is under way, for which the engine stands still."""

    def begin(self, memory: SharedMemory) -> None:
        """Share ``memory``. Raises ``RuntimeError`` where somebody else has it."""
        if self._with is not None and not self._with.returned:
            raise RuntimeError(f"the learner's weights are shared with {self._with.borrower} already")
        self._with = memory

    @contextmanager
    def changing(self) -> Iterator[Callable[[], None]]:
        """A block in which the weights change, from where what it yields is called on; calls after the first do
        nothing. Within another such block that has the engine stand still it does nothing at all."""
        with ExitStack() as stack:

            def hold() -> None:
                if not self._changes and self._with is not None and not self._with.returned:
                    stack.enter_context(self._with.pause())
                    stack.enter_context(self._under_way())

            yield hold

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        self._changes = True
        try:
            yield
        finally:
            self._changes = False


def _not_scored(ids: object) -> list[float]:
    raise RuntimeError("shared weights score nothing: have them lent")
