"""The learner of a run in processes of its own, its ranks, which this process asks: an ``agentrl.learner.contract``
``Trainable``.

Every rank is asked the same in the same order, and the first one answers for all. Where one of them is lost, or hangs
past its deadline, the others wait for it in vain, and are ended: the run goes on from its newest checkpoint with new
ones.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agentrl.config.models import Config
from agentrl.errors import AgentRLError, HostLostError, RunError
from agentrl.hosting.contract import Host, Hosts, HostSpec
from agentrl.inference.contract import TensorDigest
from agentrl.inference.shared_memory import SharedMemory
from agentrl.learner.contract import Scores, StepResult, Targets, TrainBatch
from agentrl.training.placement import rank_configs
from agentrl.training.rank import AdapterSays, Says

if TYPE_CHECKING:
    import torch

    from agentrl.learner.contract import Ints

__all__ = ["RankedLearner"]

_TARGET = "agentrl.training.rank:LearnerRank"
_LAST_WORDS_S = 2.0
"""Seconds that the other ranks have to answer once one has failed: what befell all of them is then told by the one that
it began with."""
_EARLIER_S = 2.0
"""Seconds by which the deadline here comes before that of the run: it can be told which rank was waited for."""
_THERE_S = 1.0
"""Seconds that a rank has to say that it is there, whatever it does."""
_TOO_SHORT = "see its log, or raise training.timeout where that is too short"
_LOOK_S = 0.25
"""Seconds between two looks whether the waiting is given up."""
_CLOSE_S = 10.0
"""Seconds that ranks have to end."""


class RankedLearner:
    """A learner whose ranks are hosts. One call at a time, from any thread."""

    def __init__(self, ranks: Sequence[Host], timeout: float, *, near: bool = False) -> None:
        """``ranks`` hold ``LearnerRank``s that have loaded nothing, and ``timeout`` bounds every call, in seconds.

        ``near`` says whether they are on this machine: weights come through its memory then.
        """
        self._ranks = ranks
        self._near = near
        self._timeout = max(timeout - _EARLIER_S, timeout / 2)
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._lent: list[RankedLease] = []
        self._lost: AgentRLError | None = None
        """Why nothing can be asked any more."""
        self._interrupt: threading.Event | None = None
        """Ends the waiting for ranks while they load."""
        self._beneath = False
        self._says = Says(0, None, False, None)

    @classmethod
    def start(
        cls,
        hosts: Hosts,
        config: Config,
        folder: Path,
        *,
        disabled: Sequence[str] = (),
        logs: Path | None = None,
        given_up: threading.Event | None = None,
    ) -> Self:
        """Start the processes of ``config.training`` and have them load the model in ``folder``.

        ``disabled`` are the plugins that the run leaves out, and ``logs`` is the folder for what the processes print.
        Raises as ``Hosts.start`` and ``Learner`` do, and ``RunError`` once ``given_up`` is set meanwhile; no process is
        left then.
        """
        timeout = config.training.timeout
        specs = [
            HostSpec(
                name=(name := f"learner rank {rank}"),
                target=_TARGET,
                arguments={"config": own, "rank": rank, "size": config.training.processes, "disabled": (*disabled,)},
                gpus=1.0 if own.training.device.startswith("cuda") else 0.0,
                log=None if logs is None else (logs / "hosts" / f"{name.replace(' ', '-')}.log").absolute(),
            )
            for rank, own in enumerate(rank_configs(config, hosts))
        ]
        started = hosts.start(specs, patience=timeout, given_up=given_up)
        learner = cls(started, timeout, near=not hosts.elsewhere)
        learner._interrupt = given_up
        try:
            learner._load(folder)
        except BaseException:
            learner.close()
            raise
        learner._interrupt = None
        return learner

    def _load(self, folder: Path) -> None:
        address = None
        if len(self._ranks) > 1:
            first = self._ranks[0]
            address = self._answers([first.ask("free_address", first.address)], "find a free port")[0]
        self._says = self._agreed(self._all("load the model", "load", folder.absolute(), address))

    def close(self) -> None:
        """End the ranks. Safe to call twice."""
        threads = [
            threading.Thread(target=rank.stop, args=(0.0 if self._lost else _CLOSE_S,), daemon=True)
            for rank in self._ranks
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @property
    def version(self) -> int:
        """See ``Trainable``."""
        return self._says.version

    @property
    def rows_because(self) -> str | None:
        """See ``Trainable``."""
        return self._says.rows_because

    @property
    def merges_at_start(self) -> bool:
        """See ``Trainable``."""
        return self._says.merges_at_start

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """See ``Trainable``. Raises ``ValueError`` where all weights are trained."""
        if self._says.adapter is None:
            raise ValueError("there is no adapter: all weights are trained")
        self._beneath = True
        try:
            yield
        finally:
            self._beneath = False

    def step(self, batch: TrainBatch) -> StepResult:
        """See ``Trainable``."""
        self._refuse_while_lent("step")
        answers = self._all(f"take step {self.version + 1}", "step", batch)
        self._says = self._agreed([says for says, _ in answers])
        result: StepResult = answers[0][1]
        return result

    def score(self, targets: Targets, paths: Sequence[Ints]) -> Scores:
        """See ``Trainable``."""
        scores: Scores = self._all("score tokens", "score", targets, tuple(paths), self._beneath)[0]
        return scores

    def lend(self, borrower: str) -> RankedLease:
        """See ``Trainable``. Returns without waiting for the ranks."""
        lease = RankedLease(self, next(self._numbers), borrower)
        self._lent.append(lease)
        self._tell("lend", lease.number, borrower)
        return lease

    def set_aside(self) -> None:
        """See ``Trainable``."""
        self._all("set its states aside", "set_aside")

    def bring_back(self) -> None:
        """See ``Trainable``."""
        self._all("bring its states back", "bring_back")

    def save(self, folder: Path) -> None:
        """See ``Trainable``."""
        self._all(f"write the model into {folder}", "save", folder.absolute())

    def save_state(self, folder: Path) -> None:
        """See ``Trainable``."""
        self._all(f"write its state into {folder}", "save_state", folder.absolute())

    def load_state(self, folder: Path) -> None:
        """See ``Trainable``."""
        self._refuse_while_lent("load a state")
        self._says = self._agreed(self._all(f"load {folder}", "load_state", folder.absolute()))

    def go_back(self, folder: Path, version: int) -> None:
        """See ``Trainable``."""
        self._refuse_while_lent("go back")
        self._says = self._agreed(self._all(f"load {folder}", "go_back", folder.absolute(), version))

    def take_back(self, lease: RankedLease) -> None:
        """End a loan; returns without waiting for the ranks."""
        self._lent.remove(lease)
        self._tell("give_back", lease.number)

    @property
    def adapter(self) -> AdapterSays | None:
        """What is trained in the place of the model's weights, where it is an adapter."""
        return self._says.adapter

    def of_loan(self, what: str, method: str, number: int, *args: Any, **kwargs: Any) -> Any:
        """Ask all ranks about the loan ``number``, and return what the first one says."""
        return self._all(what, method, number, *args, **kwargs)[0]

    def carried(self, number: int, what: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors that ``what`` of a loan yields, each in memory of its own; see ``LearnerRank.carry``.

        The next ones are on their way while one is used.
        """
        with contextlib.ExitStack() as stack:
            memory = stack.enter_context(SharedMemory()) if self._near else None
            asked = (number, next(self._numbers), what, None if memory is None else memory.address)
            sent = self._sent("carry", *asked)
            more = True
            while more:
                carried, more = self._answers(sent, "pass its weights on")[0]
                if more:
                    sent = self._sent("carry", *asked, 0 if memory is None else carried[-1].end)
                if memory is not None:
                    yield from memory.tensors(carried)
                else:
                    yield from ((each.name, each.tensor()) for each in carried)

    def _refuse_while_lent(self, what: str) -> None:
        if self._lent:
            borrowers = ", ".join(dict.fromkeys(lease.borrower for lease in self._lent))
            raise RuntimeError(
                f"the learner cannot {what} while its weights of version {self.version} are lent to {borrowers}: "
                "give them back first, by leaving the block of lend()"
            )

    def _tell(self, method: str, *args: Any) -> None:
        """Have ``method`` called in all ranks. Where it fails, what is asked next does too."""
        with contextlib.suppress(AgentRLError):
            self._sent(method, *args)

    def _all(self, what: str, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Have ``method`` called in all ranks and return what each says; ``what`` is what that does, for errors."""
        return self._answers(self._sent(method, *args, **kwargs), what)

    def _sent(self, method: str, *args: Any, **kwargs: Any) -> list[Future[Any]]:
        if self._lost is not None:
            raise self._lost
        with self._lock:  # All ranks are asked in the same order.
            return [rank.ask(method, *args, **kwargs) for rank in self._ranks]

    def _answers(self, asked: Sequence[Future[Any]], what: str) -> list[Any]:
        until = time.monotonic() + self._timeout
        done, pending = self._waited(asked, until, what)
        failed = [each for each in done if each.exception() is not None]
        if not failed and not pending:
            return [each.result() for each in asked]
        if not failed:
            silent = self._silent()
            late = [rank for rank, each in zip(self._ranks, asked, strict=False) if not each.done()]
            if not late:  # This process stood still, and has not listened until now.
                return self._answers(asked, what)
            # Those that do not even say that they are there are what the others wait for.
            told = f"waited {self._timeout:g} s for {_told(silent or late)} to {what}"
            raise self._given_up(HostLostError(told, fix=_TOO_SHORT))
        _, pending = wait(asked, min(_LAST_WORDS_S, max(0.0, until - time.monotonic())))
        errors = [error for each in (*failed, *asked) if each.done() and (error := each.exception()) is not None]
        lost = self._ended() or next((error for error in errors if isinstance(error, HostLostError)), None)
        if lost is not None:
            raise self._given_up(HostLostError(f"{lost.message}; it was to {what}", fix=lost.fix))
        raise self._given_up(errors[0]) if pending else errors[0]

    def _waited(
        self, asked: Sequence[Future[Any]], until: float, what: str
    ) -> tuple[set[Future[Any]], set[Future[Any]]]:
        """Wait for all answers or the first error; returns those that are there, and those that are not ``until``
        then."""
        while True:
            left = max(0.0, until - time.monotonic())
            look = left if self._interrupt is None else min(_LOOK_S, left)
            done, pending = wait(asked, look, return_when=FIRST_EXCEPTION)
            if not pending or look == left or any(each.exception() is not None for each in done):
                return done, pending
            if self._interrupt is not None and self._interrupt.is_set():
                raise self._given_up(RunError(f"the ranks of the learner were to {what} when that was given up"))

    def given_up_for(self, error: AgentRLError) -> HostLostError | None:
        """What ``error``, that something took too long, comes from where that is a rank that hangs; the ranks are
        ended then. ``None`` where all say that they are there."""
        if self._lost is not None or not (silent := self._silent()):
            return None
        lost = HostLostError(f"{error.message}, and {_told(silent)} did not answer at all", fix=_TOO_SHORT)
        self._given_up(lost)
        return lost

    def _silent(self) -> list[Host]:
        """The ranks that do not say that they are there: their processes are stopped, or wholly taken up."""
        alive = [rank.ask("is_there") for rank in self._ranks]
        wait(alive, _THERE_S)
        return [rank for rank, each in zip(self._ranks, alive, strict=True) if not each.done()]

    def _ended(self) -> HostLostError | None:
        """How a rank has ended that has: others say only that they miss it."""
        for rank in self._ranks:
            alive = rank.ask("is_there")
            if alive.done() and isinstance(error := alive.exception(), HostLostError):
                return error
        return None

    def _given_up(self, error: BaseException) -> BaseException:
        """Nothing can be asked any more, because of ``error``; the ranks that are left are ended."""
        self._lost = error if isinstance(error, AgentRLError) else RunError(str(error))
        self.close()
        return error

    def _agreed(self, says: Sequence[Says]) -> Says:
        if any(each != says[0] for each in says):
            raise self._given_up(RunError(f"the learner's ranks disagree: {', '.join(map(str, says))}"))
        return says[0]


def _told(ranks: Sequence[Host]) -> str:
    return ", ".join(f"{rank.name} on {rank.node}" for rank in ranks)


class RankedLease:
    """The weights of one policy version while somebody has them: an ``agentrl.learner.contract.Lease``."""

    def __init__(self, learner: RankedLearner, number: int, borrower: str) -> None:
        self.number = number
        """By which the ranks know the loan."""
        self.borrower = borrower
        """Who has them, in words."""
        self.version = learner.version
        """Number of optimiser steps that made the weights."""
        self._learner = learner
        self._returned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._returned:
            self._returned = True
            self._learner.take_back(self)

    @property
    def adapter(self) -> RankedAdapter | None:
        """See ``Weights``."""
        says = self._learner.adapter
        return None if says is None else RankedAdapter(self, says)

    def names(self) -> Sequence[str]:
        """See ``Weights``."""
        names: Sequence[str] = self.asked("tell the names of its weights", "names")
        return names

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and tensor of every parameter, each in memory of its own."""
        return self.carried("tensors")

    def save(self, folder: Path) -> None:
        """See ``Weights``."""
        self.asked(f"write its weights into {folder}", "save", folder.absolute())

    def logprobs(self, ids: Sequence[int]) -> Sequence[float]:
        """See ``Weights``."""
        logprobs: Sequence[float] = self.asked("score tokens", "logprobs", tuple(ids))
        return logprobs

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        """See ``Weights``."""
        digests: Mapping[str, TensorDigest] = self.asked("digest its weights", "digests", dict(dtypes))
        return digests

    def send(self, target: str, /, **arguments: Any) -> Any:
        """See ``Weights``."""
        self.check()
        return self._learner.of_loan("send its weights", "send", self.number, target, **arguments)

    def asked(self, what: str, method: str, *args: Any, of: str = "of_weights", **kwargs: Any) -> Any:
        """Have ``method`` of the weights, or of their adapter, called in the ranks; ``what`` is what it does."""
        self.check()
        return self._learner.of_loan(what, of, self.number, method, *args, **kwargs)

    def carried(self, what: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors that ``what`` yields in the ranks."""
        self.check()
        for named in self._learner.carried(self.number, what):
            yield named
            self.check()  # They may have been given back since the last tensor.

    def check(self) -> None:
        """Raise ``RuntimeError`` once the weights are back."""
        if self._returned:
            raise RuntimeError(
                f"{self.borrower} used the weights of version {self.version} after giving them back: copy what is "
                "needed of them before (a backend has them until its update_weights returns)"
            )


class RankedAdapter:
    """The adapter of weights that somebody has: an ``agentrl.inference.contract.Adapter``."""

    def __init__(self, lease: RankedLease, says: AdapterSays) -> None:
        self.rank = says.rank
        self.scale = says.scale
        self.targets = says.targets
        self._lease = lease

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See ``Adapter``; each tensor is in memory of its own."""
        return self._lease.carried("adapter.tensors")

    def merged(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See ``Adapter``; each tensor is in memory of its own."""
        return self._lease.carried("adapter.merged")

    def merged_logprobs(self, ids: Sequence[int], dtypes: Mapping[str, str]) -> Sequence[float]:
        """See ``Adapter``."""
        logprobs: Sequence[float] = self._asked("score tokens", "merged_logprobs", tuple(ids), dict(dtypes))
        return logprobs

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        """See ``Adapter``."""
        digests: Mapping[str, TensorDigest] = self._asked("digest its weights", "digests", dict(dtypes))
        return digests

    def save(self, folder: Path) -> None:
        """See ``Adapter``."""
        self._asked(f"write the adapter into {folder}", "save", folder.absolute())

    def _asked(self, what: str, method: str, *args: Any) -> Any:
        return self._lease.asked(what, method, *args, of="of_adapter")
