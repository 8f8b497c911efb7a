"""New weights: written to a folder and loaded by every server; a server that does not load them is taken out."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from agentrl import AgentRLError, BackendError, RunError, finish_in_thread
from agentrl.inference.contract import Adapter, HeldWeights, Weights
from agentrl_vllm import control
from agentrl_vllm.adapters import Adapters, LoadedAdapter
from agentrl_vllm.cache_check import CacheCheck
from agentrl_vllm.client import Client, one_line
from agentrl_vllm.generation import Use
from agentrl_vllm.replica import Replica
from agentrl_vllm.settings import VllmSettings

__all__ = ["WeightFolders", "WeightSync", "choose_root"]

_MEMORY = Path("/dev/shm")  # noqa: S108 - its folders are private: mkdtemp makes them
_PREFIX = "agentrl-weights-"
_LOCK = "lock"
_MAKING_S = 600.0
"""A folder without a lock that is older than this, in seconds, belongs to a process that has ended."""
_VERSIONS = 2
"""How many versions are in the folder while one is written."""
_FLOAT32 = 2
"""How many times larger a learner's float32 weights may be than those of a checkpoint."""


class WeightFolders:
    """A folder of this process under ``root``, which holds a model folder for each version that is still needed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._opened: tuple[Path, TextIO] | None = None

    def open(self) -> Path:
        """Make the folder once, and remove those of dead processes. Raises ``BackendError`` where that fails."""
        if self._opened is None:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                _sweep(self.root)
                folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.root))
                lock = (folder / _LOCK).open("w")
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                raise _unwritable(self.root, error.strerror or str(error)) from error
            self._opened = folder, lock
        return self._opened[0]

    def write(self, weights: Weights) -> Path:
        """Write ``weights`` and return their folder. Raises ``BackendError``, with nothing left, if that fails.

        No server hears of the folder before it is complete. One that a killed process left half written is removed at
        the next start.
        """
        folder = self.open() / f"v{weights.version}"
        try:
            weights.save(folder)
        except RunError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _unwritable(self.root, error.message) from error
        return folder

    def write_adapter(self, adapter: Adapter, version: int) -> Path:
        """Write ``adapter`` into a folder that no version had before; raises as ``write`` does."""
        folder = Path(tempfile.mkdtemp(prefix=f"a{version}-", dir=self.open()))
        try:
            adapter.save(folder)
        except RunError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _unwritable(self.root, error.message) from error
        return folder

    def copy(self, source: Path) -> Path:
        """Copy a model folder from elsewhere; raises as ``write`` does."""
        folder = self.open() / "start"
        try:
            shutil.copytree(source, folder)
        except (OSError, shutil.Error) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _unwritable(self.root, str(error)) from error
        return folder

    def holds(self, folder: Path) -> bool:
        """Returns whether ``folder`` was written here."""
        return self._opened is not None and folder.parent == self._opened[0]

    def keep(self, needed: Iterable[Path]) -> None:
        """Remove all model folders but the ``needed`` ones."""
        kept = set(needed)
        for path in () if self._opened is None else self._opened[0].iterdir():
            if path not in kept and path.name != _LOCK:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder with everything in it. Safe to call twice."""
        opened, self._opened = self._opened, None
        if opened is not None:
            shutil.rmtree(opened[0], ignore_errors=True)
            opened[1].close()


def choose_root(given: Path | None, model_folder: Path) -> Path:
    """Returns ``given``; else shared memory, if it has room for such weights; else the folder for temporary files."""
    if given is not None:
        return Path(os.path.expanduser(given)).absolute()
    needed = _VERSIONS * _FLOAT32 * sum(file.stat().st_size for file in model_folder.glob("*.safetensors"))
    if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > needed:
        return _MEMORY
    return Path(tempfile.gettempdir())


def _sweep(root: Path) -> None:
    """Remove the folders of processes that have ended, and their locks with them."""
    for folder in root.glob(f"{_PREFIX}*"):
        try:
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            if _age(folder) > _MAKING_S:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # It is in use, or another user's.
            continue


def _age(folder: Path) -> float:
    """Seconds since a folder last changed; 0 where it is gone."""
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0


def _unwritable(root: Path, reason: str) -> BackendError:
    return BackendError(
        f"new weights cannot be handed over in {root}: {reason}",
        fix="make room there, or set inference.backend.weights_dir to a folder that the servers see",
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Newest:
    folder: Path
    version: int
    adapter: Path | None = None
    """The folder of the adapter that makes this version of the model in ``folder``."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Checked:
    """A replica whose server was asked whether it can take new weights, and the answer."""

    replica: Replica
    life: int
    fault: BaseException | None


class WeightSync:
    """The newest weights, and how servers get them. Its coroutines belong to one event loop.

    During an update ``version`` changes first, before any server is paused, and a replica's own ``version`` once its
    server has confirmed it, before that samples again.
    """

    def __init__(
        self,
        settings: VllmSettings,
        client: Client,
        folder: Path,
        version: int,
        *,
        adapter: Path | None = None,
        recompute: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``folder`` is the model that the servers start with, and ``version`` that of its weights, with ``adapter``.

        With ``recompute`` the text of requests under way is computed again whenever weights change; else they go on
        with the keys and values that they have.
        """
        self._client = client
        self._say = say
        self._newest = _Newest(folder.absolute(), version, adapter)
        self._adapters = Adapters(client)
        self._first = version
        self._changed: dict[Replica, str] = {}
        """Why no digests are told of servers that hold other tensors than were loaded, from their start on."""
        self._under_way: control.UnderWay = "recompute" if recompute else "keep"
        self._between = itertools.count()
        self._folders = WeightFolders(choose_root(settings.weights_dir, folder))
        self._caches = CacheCheck(client, self.use)
        self._copying = asyncio.Lock()
        self._admitted: dict[Replica, Path] = {}
        """The folder that each replica under admission may be reading."""
        self._paused: set[str] = set()
        """Attached servers that are paused by this object."""

    @property
    def version(self) -> int:
        """The version of the newest weights."""
        return self._newest.version

    def newest(self) -> tuple[Path, int]:
        """Returns the folder and the version of the newest weights, which a server that starts now must load."""
        return self._newest.folder, self._newest.version

    def salt(self, replica: Replica) -> str:
        """Returns the name under which the server's prefix cache keeps a request that is sent to ``replica`` now.

        Requests share what is cached under one name, and that is of one version's weights: while weights change, each
        request has a name of its own.
        """
        version = self.version
        return str(version) if replica.version == version else f"{version} after {next(self._between)}"

    @contextmanager
    def use(self, replica: Replica) -> Iterator[Use]:
        """Yields what a request that is sent to ``replica`` now is for, which is there to the end of the block."""
        with self._adapters.use(replica) as loaded:
            if loaded is None:
                yield Use({"cache_salt": self.salt(replica)})
            else:
                yield Use({"model": loaded.name, "cache_salt": loaded.name}, loaded.version)

    def open(self) -> Path:
        """Returns the folder in which weights are handed over, made once. Raises ``BackendError`` where that fails."""
        return self._folders.open()

    async def put(self, weights: Weights, replicas: Sequence[Replica]) -> None:
        """Put ``weights`` into every ready replica; a replica that does not confirm them is taken out.

        Raises ``BackendError`` where they cannot be written or fit no server's model, with all servers as they were,
        and where a server's prefix cache turns out to serve what older weights computed.
        """
        if weights.adapter is not None:
            await self._put_adapter(weights.adapter, weights.version, replicas)
            return
        try:
            folder = await finish_in_thread(self._folders.write, weights)
            checked = await self._check([each for each in replicas if each.state == "ready"], folder)
            _raise_refused(checked)
        except BaseException:
            self._keep(replicas)
            raise
        self._newest = _Newest(folder, weights.version)
        while checked:  # Again for those that were admitted with older weights while others were checked.
            await asyncio.gather(*(self._replace(each) for each in checked))
            behind = [each for each in replicas if each.state == "ready" and each.version != self.version]
            checked = await self._check(behind, folder)
        self._keep(replicas)
        await self._caches.after_update(weights.version, [each for each in replicas if each.state == "ready"])

    async def _put_adapter(self, adapter: Adapter, version: int, replicas: Sequence[Replica]) -> None:
        """As ``put``. No server pauses: what is under way goes on under the adapter that it began with."""
        folder = await finish_in_thread(self._folders.write_adapter, adapter, version)
        newest = _Newest(self._newest.folder, version, folder)
        ready = [each for each in replicas if each.state == "ready"]
        lives = [each.life for each in ready]
        loads = (each.while_ready(self._adapters.load(each, folder, version)) for each in ready)
        loaded = await asyncio.gather(*loads, return_exceptions=True)
        refusals = [each for each in loaded if isinstance(each, control.Refused)]
        if refusals and all(isinstance(each, BaseException) for each in loaded):
            raise refusals[0]
        self._newest = newest
        for replica, life, one in zip(ready, lives, loaded, strict=True):
            if isinstance(one, BaseException):
                _take_out(replica, life, one)
            else:
                await self._switch(replica, one)
        for replica in replicas:  # Those that were admitted with an older one meanwhile.
            if replica.state == "ready" and replica.version != version:
                await self._switch(replica, await self._adapters.load(replica, folder, version))
        await self._adapters.unload_idle()
        self._keep(replicas)
        await self._caches.after_update(version, [each for each in replicas if each.state == "ready"])

    async def _switch(self, replica: Replica, loaded: LoadedAdapter) -> None:
        """Have new requests name ``loaded``, and the server say its version."""
        self._adapters.switch(replica, loaded)
        if replica.life == loaded.life:
            await control.stamp(self._client, replica.url, loaded.version)
            replica.version = loaded.version

    async def admit(self, replica: Replica) -> None:
        """Bring a server that has just started to the newest weights, and set the replica's ``version``.

        An attached server loses the requests that it holds: they may be of a run that was killed, and of other weights.
        Raises ``BackendError`` where it does not take the weights, or they cannot be handed over.
        """
        self.open()
        if replica.version == self.version:
            return
        ours = replica.server.ours
        description = await control.describe(self._client, replica.url)
        # What another machine has under the same name may be another thing.
        loaded = Path(description.folder) if ours else None
        try:
            while replica.version != self.version:
                newest = self._newest if ours else await self._handed_over()
                self._admitted[replica] = newest.folder
                await self._bring(replica, newest, loaded)
                loaded = newest.folder
                await self._caches.before_updates(replica, description)
        finally:
            self._admitted.pop(replica, None)

    async def held(self, replica: Replica) -> HeldWeights:
        """Returns what a replica's server holds. Raises ``BackendError`` where it does not answer."""
        loaded = self._adapters.current(replica)
        held = await control.held(self._client, replica.url, None if loaded is None else loaded.number)
        if (inability := self._changed.get(replica)) is None:
            return held
        return dataclasses.replace(held, tensors=None, inability=inability)

    async def odd_one(self, found: Mapping[Replica, HeldWeights]) -> HeldWeights:
        """Returns the one of ``found`` that is not the newest weights, or else any of them.

        Where they differ, the servers hold their memories against the folder that they were given.
        """
        first, *others = found.values()
        for held in found.values():
            if held.version != self.version:
                return held
        if all(other == first for other in others):
            return first
        for replica, held in found.items():
            try:
                await control.compare(self._client, replica.url, self._newest.folder)
            except BackendError:
                return held
        return first

    async def release(self) -> None:
        """Let attached servers go on that an update has left paused."""
        urls, self._paused = self._paused, set()
        await asyncio.gather(*(self._release(url) for url in urls))

    def close(self) -> None:
        """Remove all folders of weights. Safe to call twice."""
        self._folders.close()

    async def _check(self, replicas: Iterable[Replica], folder: Path) -> list[_Checked]:
        """Ask all whether they can take the weights in ``folder``."""
        asked = [(each, each.life) for each in replicas]
        checks = (each.while_ready(control.check(self._client, each.url, folder)) for each, _ in asked)
        faults = await asyncio.gather(*checks, return_exceptions=True)
        return [_Checked(*who, fault) for who, fault in zip(asked, faults, strict=True)]

    async def _replace(self, checked: _Checked) -> None:
        replica, life = checked.replica, checked.life
        try:
            if checked.fault is not None:
                raise checked.fault
            await replica.while_ready(self._give(replica, self._newest, self._under_way))
        except BaseException as error:  # Cancelled too: its server may be paused, or be between two versions.
            _take_out(replica, life, error)
            if not isinstance(error, Exception):
                raise

    async def _bring(self, replica: Replica, newest: _Newest, loaded: Path | None) -> None:
        if is_other := loaded != newest.folder:
            # Before it is paused: a server that is refused goes on for others.
            await control.check(self._client, replica.url, newest.folder)
        await self._give(replica, newest, "abort", load=is_other)

    async def _give(self, replica: Replica, newest: _Newest, under_way: control.UnderWay, *, load: bool = True) -> None:
        url, before = replica.url, (replica.life, replica.state)
        if not replica.server.ours:
            self._paused.add(url)
        await control.pause(self._client, url, under_way)
        if load:
            with replica.busy():
                await control.replace(self._client, url, newest.folder)
        if under_way == "abort":  # Of what is under way nobody waits for a proof: the run asks for it at once.
            with replica.busy():
                await self._prove(replica, newest.folder)
        if under_way != "keep":
            await control.forget(self._client, url)
        folder = newest.adapter
        loaded = None if folder is None else await self._adapters.load(replica, folder, newest.version)
        self._adapters.switch(replica, loaded)
        await control.stamp(self._client, url, newest.version)
        if (replica.life, replica.state) == before:  # Else it was lost, and another server takes its place.
            replica.version = newest.version
        await control.resume(self._client, url)
        self._paused.discard(url)

    async def _prove(self, replica: Replica, folder: Path) -> None:
        """Have a server that is to serve first hold its memory against ``folder``; raises as ``control.compare``.

        What is another in the first server of a replica, at the start of a run, vLLM has made of it as it loaded it.
        """
        if replica in self._changed:
            return
        try:
            inability = await control.compare(self._client, replica.url, folder)
        except control.Unlike as error:
            if replica.life > 1 or self.version != self._first:
                raise
            inability = self._changed[replica] = f"vLLM changes tensors as it loads them: {error.message}"
        if inability:
            self._say(f"{replica.server.name} serves weights that cannot be held against {folder}: {inability}")

    async def _handed_over(self) -> _Newest:
        """The newest weights in a folder of this process, which nothing else can change."""
        async with self._copying:
            newest = self._newest
            if not self._folders.holds(newest.folder):
                folder = await finish_in_thread(self._folders.copy, newest.folder)
                if newest == self._newest:
                    self._newest = _Newest(folder, newest.version, newest.adapter)
            return self._newest

    def _keep(self, replicas: Iterable[Replica]) -> None:
        """Remove folders that nobody reads. A server may read the one that it was started on, or is admitted with."""
        started = (each.folder for each in replicas if each.state == "starting")
        read = {self._newest.folder, *started, *self._admitted.values(), *self._adapters.folders()}
        self._folders.keep(read if self._newest.adapter is None else {*read, self._newest.adapter})

    async def _release(self, url: str) -> None:
        with suppress(BackendError):  # It is gone, and so is what it held.
            await control.release(self._client, url)


def _raise_refused(checked: Sequence[_Checked]) -> None:
    """Raise ``Refused`` where no server can take the weights and one says why."""
    refusals = [each.fault for each in checked if isinstance(each.fault, control.Refused)]
    if refusals and all(each.fault is not None for each in checked):
        raise refusals[0]


def _take_out(replica: Replica, life: int, error: BaseException) -> None:
    text = error.message if isinstance(error, AgentRLError) else one_line(error) or type(error).__name__
    replica.fail(f"it did not take new weights: {text}", life=life)
