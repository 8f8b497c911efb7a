"""The other ranks of a learner, each at the end of a connection that closes when its process ends.

A collective that fails says that something is wrong, and seldom which rank it was. Here each rank keeps one connection
to every other. A process that is killed closes its connections at once, a machine that is gone is found by TCP's
keepalive, and who leaves on purpose says so before.
"""

from __future__ import annotations

import contextlib
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from agentrl.errors import HostLostError

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

__all__ = ["Peers"]

_LEAVES = b"L"
_TOKEN = 16
"""Bytes of the token by which a connection shows that it is a rank's."""
_PARTING = 2.0
"""Seconds that a rank waits for the others to leave too, of which one may still need what it holds."""
_IDLE, _INTERVAL, _PROBES = 15, 5, 3
"""Seconds until TCP asks after a silent rank, between its questions, and how many stay unanswered."""


class Peers:
    """The other ranks, as rank ``rank`` of ``size`` sees them.

    ``store`` is where they tell each other how they are reached, and ``address`` how this one is.
    """

    def __init__(self, rank: int, size: int, store: Store, address: str, patience: float) -> None:
        self._rank = rank
        self._size = size
        self._store = store
        self._address = address
        self._patience = patience
        self._machines: dict[int, str] = {rank: socket.gethostname()}
        self._links: dict[int, socket.socket] = {}
        self._lost: list[int] = []
        self._left: set[int] = set()
        self._changed = threading.Condition()
        self._stopping = False
        self.on_loss: Callable[[], None] | None = None
        """Called, from a thread of its own, when a rank has ended without leaving."""
        self._watcher = threading.Thread(target=self._watch, name="ranks of the learner", daemon=True)

    @property
    def beside(self) -> Sequence[int]:
        """The ranks on this machine, this one among them."""
        here = self._machines[self._rank]
        return [rank for rank, machine in sorted(self._machines.items()) if machine == here]

    def meet(self) -> None:
        """Connect to all others. Raises ``HostLostError`` where some have not come within the patience."""
        deadline = time.monotonic() + self._patience
        token = secrets.token_bytes(_TOKEN)
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        with socket.create_server((self._address, 0), family=family, backlog=self._size) as door:
            said = f"{self._address}|{door.getsockname()[1]}|{token.hex()}|{self._machines[self._rank]}"
            self._store.set(f"peer/{self._rank}", said)
            for other in range(self._size):
                self._find(other, deadline)
            for other in range(self._rank):
                self._links[other] = self._call(other, deadline)
            while len(self._links) < self._size - 1:
                self._admit(door, token, deadline)
        for link in self._links.values():
            _keep_alive(link)
            link.setblocking(False)
        self._watcher.start()

    def _find(self, other: int, deadline: float) -> None:
        key = f"peer/{other}"
        try:
            self._store.wait([key], timedelta(seconds=max(0.01, deadline - time.monotonic())))
        except RuntimeError as error:
            missing = [rank for rank in range(self._size) if rank not in self._machines and not self._has(rank)]
            named = ", ".join(map(str, missing or [other]))
            raise HostLostError(
                f"of {self._size} ranks of the learner these have not come within {self._patience:g} s: {named}",
                fix="see their logs; a rank loads nothing before all are there",
            ) from error
        self._machines[other] = self._said(other)[3]

    def _has(self, rank: int) -> bool:
        try:
            return bool(self._store.check([f"peer/{rank}"]))
        except RuntimeError:  # The store went with rank 0.
            return False

    def _said(self, rank: int) -> list[str]:
        text: str = self._store.get(f"peer/{rank}").decode()
        return text.split("|", 3)

    def _call(self, other: int, deadline: float) -> socket.socket:
        address, port, token, _ = self._said(other)
        try:
            link = socket.create_connection((address, int(port)), timeout=max(0.01, deadline - time.monotonic()))
            link.sendall(bytes.fromhex(token) + self._rank.to_bytes(4, "big"))
        except OSError as error:
            raise HostLostError(
                f"rank {self._rank} of the learner cannot reach rank {other} at {address}:{port}: {error}",
                fix="see its log, and whether the machines can reach each other on all ports",
            ) from error
        return link

    def _admit(self, door: socket.socket, token: bytes, deadline: float) -> None:
        """Take the next connection; one that does not show the token is closed."""
        door.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            link, _ = door.accept()
            link.settimeout(max(0.01, deadline - time.monotonic()))
            shown = b""
            while len(shown) < _TOKEN + 4 and (more := link.recv(_TOKEN + 4 - len(shown))):
                shown += more
        except OSError as error:
            missing = [rank for rank in range(self._size) if rank != self._rank and rank not in self._links]
            raise HostLostError(
                f"rank {self._rank} of the learner was not called within {self._patience:g} s by rank "
                f"{', '.join(map(str, missing))}",
                fix="see its log, and whether the machines can reach each other on all ports",
            ) from error
        other = int.from_bytes(shown[_TOKEN:], "big")
        if secrets.compare_digest(shown[:_TOKEN], token) and self._rank < other < self._size:
            self._links[other] = link
        else:
            link.close()

    def lost(self, patience: float) -> tuple[int, str] | None:
        """Return the first rank that has ended without leaving, and its machine.

        Where there is none yet, waits for one for ``patience`` seconds, and returns ``None`` where none has ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._lost, timeout=patience)
            return (self._lost[0], self._machines[self._lost[0]]) if self._lost else None

    def leave(self) -> None:
        """Say to the others that this rank ends on purpose."""
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.send(_LEAVES)

    def close(self) -> None:
        """Close the connections, of rank 0, which holds what others may still ask for, once they leave too."""
        if self._rank == 0 and self._watcher.is_alive():
            with self._changed:
                self._changed.wait_for(lambda: len(self._left) + len(self._lost) == self._size - 1, _PARTING)
        self._stopping = True
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)  # which ends the watcher's wait for it
        if self._watcher.is_alive():
            self._watcher.join()
        for link in self._links.values():
            link.close()
        self._links.clear()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    self._heard(selector, key)

    def _heard(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        """A rank leaves, or its connection has closed."""
        rank, link = key.data, key.fileobj
        assert isinstance(link, socket.socket)
        try:
            said = link.recv(1)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        is_lost = False
        with self._changed:
            if said == _LEAVES:
                self._left.add(rank)
            else:
                selector.unregister(link)
                is_lost = not self._stopping and rank not in self._left
                if is_lost:
                    self._lost.append(rank)
            self._changed.notify_all()
        if is_lost and self.on_loss is not None:
            self.on_loss()


def _keep_alive(link: socket.socket) -> None:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
    for option, value in (
        (idle, _IDLE),
        (getattr(socket, "TCP_KEEPINTVL", None), _INTERVAL),
        (getattr(socket, "TCP_KEEPCNT", None), _PROBES),
    ):
        if option is not None:
            link.setsockopt(socket.IPPROTO_TCP, option, value)
