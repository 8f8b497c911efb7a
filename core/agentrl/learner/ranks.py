"""Ranks: the processes that train one model together, and what passes between them.

Every rank calls the same methods of its ``Learner`` with the same arguments and in the same order, holds its share of
each weight, and computes its share of the passes. A learner that is alone has ``Ranks.alone()``, which has no process
group, imports nothing and costs nothing.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agentrl.errors import AgentRLError, HostLostError, RunError, one_line, shortened

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]
    from torch.distributed.device_mesh import DeviceMesh

    from agentrl.learner.peers import Peers

__all__ = ["Ranks"]

LOOPBACK = "127.0.0.1"
_CARD = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915
"""Of Linux: asks for the IPv4 address of a network card."""
_GRACE = 5.0
"""Seconds in which the end of a rank is noticed after a collective failed for it."""
_BACKLOG = 1024
"""Ranks that may wait to be let in."""
_LOOK = 0.05
"""Seconds between looks for what another rank has done."""
_SAID_BY_THE_NETWORK = ("gloo", "nccl", "timed out", "closed by peer", "connection reset")
"""What errors say that come from talking to another rank, and have no class of their own."""


class Ranks:
    """The ranks of one learner, as one of them sees them: made by ``alone`` or by ``join``."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        """Which one this is, from 0."""
        self.size = size
        """How many there are."""
        self.device: torch.device | None = None
        """The device that this rank trains on; ``None`` where the settings say it."""
        self._patience = 0.0
        self._store: Store | None = None
        self._peers: Peers | None = None
        self._mesh: DeviceMesh | None = None
        self._turns = 0

    @classmethod
    def alone(cls) -> Ranks:
        """The only rank, without a process group."""
        return cls()

    @classmethod
    def join(cls, rank: int, size: int, address: str, device: torch.device | str, patience: float) -> Ranks:
        """Meet the other ranks, and return once all are there.

        ``address`` is ``host:port`` of a free port on the machine of rank 0, which listens there: what
        ``free_address`` returned there. ``device`` is the one that this rank trains on; ranks talk by NCCL where it is
        a GPU, and by gloo otherwise. No wait for another rank is longer than ``patience`` seconds. A process may join
        again after ``leave``. Raises ``RunError`` where rank 0 cannot listen at ``address``, and ``HostLostError``,
        naming them, where ranks have not come in time.
        """
        from agentrl.learner.peers import Peers

        if not 0 <= rank < size:
            raise ValueError(f"there is no rank {rank} among {size}")
        made = cls(rank, size)
        made.device, made._patience = torch.device(device), patience
        made._store = store = _meet(rank, address, patience)
        made._peers = Peers(rank, size, store, _own_address(address), patience)
        if made.device.type == "cuda":
            made._peers.on_loss = _abort  # NCCL itself waits for who is gone
        try:
            made._peers.meet()
            with made.guarding("join"):
                made._mesh = _process_group(made, _host(address))
        except BaseException:
            made.leave()
            raise
        return made

    @staticmethod
    def free_address(host: str = LOOPBACK) -> str:
        """Return ``host:port`` of a free port of this machine, for ``join``; ``host`` is how other ranks reach it."""
        with socket.socket(_family(host), socket.SOCK_STREAM) as found:
            found.bind((host, 0))
            return f"{host}:{found.getsockname()[1]}"

    @property
    def together(self) -> bool:
        """Whether there is a process group, of one rank or several, and weights are sharded over it."""
        return self._mesh is not None

    @property
    def mesh(self) -> DeviceMesh:
        """The ranks as torch knows them, in one dimension."""
        assert self._mesh is not None, "a learner that is alone has no process group"
        return self._mesh

    def leave(self) -> None:
        """Part from the other ranks, who take it for no loss. Safe to call twice; nothing can be asked after it."""
        peers, self._peers = self._peers, None
        if peers is not None:
            peers.leave()
        if self._mesh is not None:
            import torch.distributed as dist

            self._mesh = None
            dist.destroy_process_group()
        if peers is not None:
            peers.close()
        self._store = None

    def add_up(self, tensor: Tensor) -> Tensor:
        """Add the tensors of all ranks into ``tensor``, which every rank then has, to the bit; returns it."""
        if self.together:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Return the ``value`` of every rank in the order of ranks: what JSON has, in which a tuple is a list.

        It crosses the network as text, so that nothing that comes from there is unpickled. Raises ``TypeError`` for a
        value that JSON does not have.
        """
        if not self.together:
            return [value]
        import torch.distributed as dist

        own = torch.frombuffer(bytearray(json.dumps(value), "ascii"), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([own.numel()]))
        longest = max(int(size) for size in sizes)
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(texts, torch.nn.functional.pad(own, (0, longest - own.numel())))
        return [json.loads(text[: int(size)].numpy().tobytes()) for text, size in zip(texts, sizes, strict=True)]

    def first(self, work: Callable[[], None]) -> None:
        """Have rank 0 do ``work``, and wait for it; an ``AgentRLError`` that it raises is one on every rank."""
        failure: AgentRLError | None = None
        if self.rank == 0:
            try:
                work()
            except AgentRLError as error:
                failure = error
        self.agree(failure)

    def agree(self, failure: AgentRLError | None) -> None:
        """Raise, on every rank, where one has failed at what all were to do; ``failure`` is this rank's own."""
        failures = self.gather(None if failure is None else (failure.message, failure.fix))
        if failure is not None:
            raise failure
        for rank, told in enumerate(failures):
            if told is not None:
                raise RunError(f"rank {rank} of the learner failed: {told[0]}", fix=told[1])

    def norm(self, norms: Tensor) -> Tensor:
        """Return the norm of everything, from that of what this rank has; the same on all ranks."""
        return self.add_up(norms.double().square()).sqrt().to(norms.dtype) if self.together else norms

    def whole(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return a sharded ``tensor`` whole, as ``dtype`` or as it is, on every rank; any other as it is.

        All ranks have to ask for the same tensors in the same order.
        """
        tensor = tensor.detach() if dtype is None else tensor.detach().to(dtype)
        gather = getattr(tensor, "full_tensor", None)
        return tensor if gather is None else gather()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """A block that the ranks of each machine enter one after another. Nothing may be asked of others within."""
        if self._store is None or self._peers is None:
            yield
            return
        number, self._turns = self._turns, self._turns + 1
        before = max((rank for rank in self._peers.beside if rank < self.rank), default=None)
        if before is not None:
            self._wait_for(f"turn/{number}/{before}")
        try:
            yield
        finally:
            self._store.set(f"turn/{number}/{self.rank}", "done")

    def _wait_for(self, key: str) -> None:
        """Wait until a rank has set ``key``, or one is lost."""
        assert self._store is not None
        deadline = time.monotonic() + self._patience
        while not self._store.check([key]):
            self._raise_for_lost("load the model", _LOOK, None)
            if time.monotonic() > deadline:
                raise HostLostError(
                    f"rank {self.rank} of {self.size} of the learner waited {self._patience:g} s for the ranks beside "
                    "it to load the model, each in turn",
                    fix="raise training.timeout, or give the model a faster disk",
                )

    @contextmanager
    def guarding(self, what: str) -> Iterator[None]:
        """A block that ends in ``HostLostError``, naming the rank, where another one is lost or does not answer.

        ``what`` is what this rank is about to do, such as ``step``. Errors of its own pass as they are.
        """
        if self._peers is None:
            yield
            return
        try:
            yield
        except RuntimeError as error:
            asked = _is_of_the_network(error)
            self._raise_for_lost(what, _GRACE if asked else 0.0, error)
            if not asked:
                raise
            raise HostLostError(
                f"rank {self.rank} of {self.size} of the learner could not {what} with the others, none of which has "
                f"ended: {shortened(one_line(error))}",
                fix=f"look for a rank that hangs, or raise training.timeout={self._patience:g} where it is slow",
            ) from error
        self._raise_for_lost(what, 0.0, None)  # what was made with one that is gone is nothing to go on from

    def _raise_for_lost(self, what: str, patience: float, cause: Exception | None) -> None:
        """Raise ``HostLostError`` where a rank is lost, or is within so many seconds."""
        lost = None if self._peers is None else self._peers.lost(patience)
        if lost is not None:
            rank, machine = lost
            raise HostLostError(
                f"rank {rank} of {self.size} of the learner, on {machine}, ended while rank {self.rank} was to {what} "
                "with it",
                fix="see its log for the reason; the run can go on from its newest checkpoint",
            ) from cause


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _meet(rank: int, address: str, patience: float) -> Store:
    import torch.distributed as dist

    try:
        host, port = _host(address), int(address.rpartition(":")[2])
        # A store that opens its port itself listens at every address of the machine.
        door = None if rank else socket.create_server((host, port), family=_family(host), backlog=_BACKLOG).detach()
        return dist.TCPStore(  # type: ignore[attr-defined]
            host,
            port,
            None,
            rank == 0,
            timedelta(seconds=patience),
            wait_for_workers=False,
            master_listen_fd=door,
        )
    except (OSError, RuntimeError, ValueError) as error:
        if rank == 0:
            raise RunError(
                f"rank 0 of the learner cannot listen at {address}: {shortened(one_line(error))}",
                fix="start the run again, which takes another port",
            ) from error
        raise HostLostError(
            f"rank {rank} of the learner has not found rank 0 at {address} within {patience:g} s: "
            f"{shortened(one_line(error))}",
            fix="see the log of rank 0, and whether its machine can be reached from here",
        ) from error


def _own_address(address: str) -> str:
    """The address of this machine on the network that leads to ``address``."""
    where = socket.getaddrinfo(_host(address), int(address.rpartition(":")[2]), type=socket.SOCK_DGRAM)[0]
    with socket.socket(where[0], socket.SOCK_DGRAM) as towards:
        towards.connect(where[4])
        return str(towards.getsockname()[0])


def _process_group(ranks: Ranks, host: str) -> DeviceMesh:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    assert ranks.device is not None
    assert ranks._store is not None
    on_gpu = ranks.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(ranks.device)
    was_there = dist.is_initialized()
    try:
        with _facing(host):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                store=dist.PrefixStore("group", ranks._store),  # type: ignore[attr-defined]
                rank=ranks.rank,
                world_size=ranks.size,
                timeout=timedelta(seconds=ranks._patience),
            )
            return init_device_mesh(ranks.device.type, (ranks.size,))
    except BaseException:
        if not was_there and dist.is_initialized():  # Else this process could never join again.
            dist.destroy_process_group()
        raise


@contextmanager
def _facing(host: str) -> Iterator[None]:
    """Have gloo take, within the block, the network card that leads to ``host``, unless the environment names one.

    By itself it takes the address that this machine's name stands for, which is of the loopback interface on many.
    """
    card = None if _CARD in os.environ else _card_towards(host)
    if card is None:
        yield
        return
    os.environ[_CARD] = card
    try:
        yield
    finally:
        del os.environ[_CARD]


def _card_towards(host: str) -> str | None:
    """The name of the network card that leads to ``host``; ``None`` where it cannot be told."""
    if host == LOOPBACK:
        return "lo0" if sys.platform == "darwin" else "lo"
    if sys.platform != "linux":
        return None
    import fcntl

    own = _own_address(f"{host}:1")
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, suppress(OSError):
            found = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            if socket.inet_ntoa(found[20:24]) == own:
                return name
    return None


def _abort() -> None:
    """End the collectives that wait for a rank that is gone."""
    from torch.distributed.distributed_c10d import _abort_process_group

    _abort_process_group()


def _is_of_the_network(error: RuntimeError) -> bool:
    import torch.distributed as dist

    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in _SAID_BY_THE_NETWORK)
