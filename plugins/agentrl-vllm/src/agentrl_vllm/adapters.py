"""Adapters on servers: loaded beside the base model, each under a name of its own that is never used again.

A request names the adapter that it is sampled with, and keeps it to its end: what is under way when a new one comes
goes on under the old one, and its tokens are of the old version. An adapter is unloaded at the first update after the
last request that named it.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agentrl import BackendError
from agentrl_vllm import control
from agentrl_vllm.client import Client
from agentrl_vllm.replica import Replica

__all__ = ["Adapters", "LoadedAdapter"]


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter that a server has loaded."""

    name: str
    """The name by which requests ask for it."""
    version: int
    """The policy version that it makes of the base model."""
    number: int
    """What the server's workers know it by."""
    folder: Path
    """Where it was loaded from, and may be loaded from again while it is in use."""
    life: int
    """The ``life`` of the replica whose server has it."""


class Adapters:
    """The adapters of a run's servers. ``use`` may be called from any thread, all else belongs to one event loop."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._run = secrets.token_hex(4)
        """Part of every name, because an attached server may have loaded adapters of another run."""
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._current: dict[Replica, LoadedAdapter] = {}
        self._older: dict[Replica, list[LoadedAdapter]] = {}
        self._users: Counter[str] = Counter()

    async def load(self, replica: Replica, folder: Path, version: int) -> LoadedAdapter:
        """Have a server load the adapter in ``folder``; nothing asks for it before ``switch``.

        Raises ``Refused`` where it does not take it.
        """
        name = f"agentrl-{self._run}-v{version}-{next(self._numbers)}"
        life, url = replica.life, replica.url
        before = await control.adapters(self._client, url)
        with replica.busy():
            await control.load_adapter(self._client, url, name, await replica.server.place(folder))
        new = await control.adapters(self._client, url) - before
        if len(new) != 1:
            raise BackendError(
                f"the server at {url} has loaded an adapter, and its workers have {len(new)} new ones",
                fix="nobody else may load adapters while a run uses it",
            )
        return LoadedAdapter(name, version, new.pop(), folder, life)

    def switch(self, replica: Replica, loaded: LoadedAdapter | None) -> None:
        """Have requests that are sent to ``replica`` from now on name ``loaded``, or the base model."""
        with self._lock:
            old = self._current.pop(replica, None)
            if old is not None:
                self._older.setdefault(replica, []).append(old)
            if loaded is not None:
                self._current[replica] = loaded

    def current(self, replica: Replica) -> LoadedAdapter | None:
        """Returns what requests name now, if it is an adapter of the replica's present server."""
        loaded = self._current.get(replica)
        return loaded if loaded is not None and loaded.life == replica.life else None

    @contextmanager
    def use(self, replica: Replica) -> Iterator[LoadedAdapter | None]:
        """Yields what a request to ``replica`` names, which stays loaded within the block."""
        with self._lock:
            loaded = self.current(replica)
            if loaded is not None:
                self._users[loaded.name] += 1
        try:
            yield loaded
        finally:
            if loaded is not None:
                with self._lock:
                    self._users[loaded.name] -= 1

    async def unload_idle(self) -> None:
        """Have servers forget the older adapters that no request names any more."""
        for replica, older in list(self._older.items()):
            with self._lock:
                idle = [each for each in older if not self._users[each.name]]
                self._older[replica] = [each for each in older if each not in idle]
            for each in idle:
                if each.life == replica.life and replica.state == "ready":
                    with suppress(BackendError):  # Its server is lost, and the adapter with it.
                        await control.unload_adapter(self._client, replica.url, each.name)

    def folders(self) -> Iterable[Path]:
        """Returns the folders that a server may still read."""
        with self._lock:
            loaded = [*self._current.values(), *itertools.chain.from_iterable(self._older.values())]
        return {each.folder for each in loaded}
