"""New weights: given to every server, by a folder or sent from where they are; one that does not take them is out."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from agentrl import BackendError, finish_in_thread
from agentrl.inference.contract import Adapter, HeldWeights, Weights
from agentrl_vllm import control
from agentrl_vllm.adapters import Adapters, LoadedAdapter
from agentrl_vllm.cache_check import CacheCheck
from agentrl_vllm.client import Client
from agentrl_vllm.folders import WeightFolders, choose_root
from agentrl_vllm.generation import Use
from agentrl_vllm.outcomes import Checked, raise_refused, size_of, take_out, unlike
from agentrl_vllm.replica import Replica
from agentrl_vllm.sending import Sent
from agentrl_vllm.settings import VllmSettings
from agentrl_vllm.transfer import Lend, Transfer, Way, choose_way, find_place

__all__ = ["WeightSync"]


@dataclasses.dataclass(frozen=True, slots=True)
class _Newest:
    folder: Path
    version: int
    adapter: Path | None = None
    """The folder of the adapter that makes this version of the model in ``folder``."""
    is_sent: bool = False
    """Whether they are in no folder: ``folder`` is then that of a model of the same shape, and the run lends them."""


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
        lend: Lend | None = None,
        key: str | None = None,
        bare: bool = False,
        sees: bool = True,
    ) -> None:
        """``folder`` is the model that the servers start with, and ``version`` that of its weights, with ``adapter``.

        ``lend`` is that of the context and ``key`` the servers' API key. ``bare`` says that servers start without
        these weights, and ``sees`` whether they see folders of this machine.

        With ``recompute`` the text of requests under way is computed again whenever weights change; else they go on
        with the keys and values that they have.
        """
        self._client = client
        self._say = say
        self._newest = _Newest(folder.absolute(), version, adapter, is_sent=bare)
        self._settings = settings
        self._lend = lend
        self._key = key
        self._sees = sees
        self._transfer: Transfer | None = None
        self._told: dict[Replica, control.Description] = {}
        """What each replica's server has said of itself, of those that weights may be sent to."""
        self.moved = 0
        """Bytes of the weights that the servers were given last."""
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
        if (transfer := await self._way(weights)).way != "folder":
            await self._put_sent(transfer, weights, replicas)
            return
        try:
            folder = await finish_in_thread(self._folders.write, weights)
            checked = await self._check([each for each in replicas if each.state == "ready"], folder)
            raise_refused(checked)
        except BaseException:
            self._keep(replicas)
            raise
        self._newest = _Newest(folder, weights.version)
        self.moved = size_of(folder)
        while checked:  # Again for those that were admitted with older weights while others were checked.
            await asyncio.gather(*(self._replace(each) for each in checked))
            behind = [each for each in replicas if each.state == "ready" and each.version != self.version]
            checked = await self._check(behind, folder)
        self._keep(replicas)
        await self._caches.after_update(weights.version, [each for each in replicas if each.state == "ready"])

    async def _way(self, weights: Weights) -> Transfer:
        """How servers get weights, found out at the first ones. Raises ``ConfigError`` as ``choose_way``."""
        if self._transfer is None:
            asked, told = self._settings.transfer, next(iter(self._told.values()), None)
            way: Way = "folder"
            if told is not None and asked != "folder" and not (asked == "auto" and self._lend is None):
                place = await find_place(weights)
                way = choose_way(
                    asked, place, told, shares=self._settings.colocate, sees=self._sees, lends=self._lend is not None
                )
            self._transfer = Transfer(way, self._key, control.LOAD_S)
            if way != "folder":
                self._say(f"new weights go to the servers by {way}")
        return self._transfer

    async def _put_sent(self, transfer: Transfer, weights: Weights, replicas: Sequence[Replica]) -> None:
        """As ``put``, sent from where they are."""
        checked = await self._check_names(weights, [each for each in replicas if each.state == "ready"])
        raise_refused(checked)
        self._newest = dataclasses.replace(self._newest, version=weights.version, is_sent=True)
        while checked:  # Again for those that were admitted with older weights while others took them.
            await self._send(transfer, weights, checked, self._under_way)
            behind = [each for each in replicas if each.state == "ready" and each.version != self.version]
            checked = await self._check_names(weights, behind)
        self._keep(replicas)
        await self._caches.after_update(weights.version, [each for each in replicas if each.state == "ready"])

    async def _send(
        self, transfer: Transfer, weights: Weights, checked: Sequence[Checked], under_way: control.UnderWay
    ) -> None:
        """Pause the servers, send them ``weights`` all at once, and let each go on that has taken them."""
        lives = {each.replica: each.life for each in checked}
        try:
            going = [each.replica for each in checked if self._is_well(each)]
            paused = await asyncio.gather(*(self._pause(each, under_way) for each in going), return_exceptions=True)
            going = [each for each, fault in zip(going, paused, strict=True) if self._took(each, lives[each], fault)]
            if not going:
                return
            servers = {each.url: (self._told[each].workers, lives[each]) for each in going}
            with contextlib.ExitStack() as busy:
                for each in going:
                    busy.enter_context(each.busy())
                sent = await self._sent(transfer, weights, servers, self._told[going[0]].dtype)
            self.moved = sent.bytes
            faults = {**sent.faults, **sent.refusals}
            for each in going:
                fault = BackendError(faults[each.url]) if each.url in faults else None
                if self._took(each, lives[each], fault):
                    with suppress(BackendError):
                        await self._let_go_on(each, lives[each], weights, under_way)
        except BaseException as error:  # Cancelled too: servers may be paused, or be between two versions.
            for replica, life in lives.items():
                if replica.version != weights.version:
                    take_out(replica, life, error)
            if not isinstance(error, BackendError):
                raise

    async def _sent(
        self, transfer: Transfer, weights: Weights, servers: Mapping[str, tuple[int, int]], dtype: str
    ) -> Sent:
        """Send ``weights`` to paused servers; by a stream from now on where no group of NCCL comes about by itself."""
        sent = await transfer.send(weights, servers, dtype)
        if transfer.way != "nccl" or self._settings.transfer != "auto" or len(sent.refusals) < len(servers):
            return sent
        self._say(f"new weights go to the servers by stream: {next(iter(sent.refusals.values()))}")
        self._transfer = Transfer("stream", self._key, control.LOAD_S)
        return await self._transfer.send(weights, servers, dtype)

    async def _let_go_on(self, replica: Replica, life: int, weights: Weights, under_way: control.UnderWay) -> None:
        """Have a paused server serve the ``weights`` that it has taken. Takes it out, and raises, where it does not."""
        try:
            with replica.busy():
                if under_way == "abort":
                    await self._prove_sent(replica, weights)
                if under_way != "keep":
                    await control.forget(self._client, replica.url)
                self._adapters.switch(replica, None)
                await control.stamp(self._client, replica.url, weights.version)
                if replica.life == life:
                    replica.version = weights.version
                await control.resume(self._client, replica.url)
            self._paused.discard(replica.url)
        except BackendError as error:
            take_out(replica, life, error)
            raise

    def _is_well(self, checked: Checked) -> bool:
        return self._took(checked.replica, checked.life, checked.fault)

    def _took(self, replica: Replica, life: int, fault: BaseException | None) -> bool:
        """Whether there is no ``fault``; else the replica is taken out."""
        if fault is not None:
            take_out(replica, life, fault)
        return fault is None

    async def _pause(self, replica: Replica, under_way: control.UnderWay) -> None:
        if not replica.server.ours:
            self._paused.add(replica.url)
        await control.pause(self._client, replica.url, under_way)

    async def _check_names(self, weights: Weights, replicas: Iterable[Replica]) -> list[Checked]:
        """Ask all whether they can take ``weights``, by their names."""
        names = list(weights.names())
        return await self._asked(replicas, lambda each: control.fits(self._client, each.url, names))

    async def _put_adapter(self, adapter: Adapter, version: int, replicas: Sequence[Replica]) -> None:
        """As ``put``. No server pauses: what is under way goes on under the adapter that it began with."""
        folder = await finish_in_thread(self._folders.write_adapter, adapter, version)
        newest = _Newest(self._newest.folder, version, folder)
        self.moved = size_of(folder)
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
                take_out(replica, life, one)
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
        description = self._told[replica] = await control.describe(self._client, replica.url)
        if self._newest.is_sent:
            await self._admit_sent(replica, description)
            return
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

    async def _admit_sent(self, replica: Replica, description: control.Description) -> None:
        """As ``admit``, where the newest weights are in no folder: the run lends them."""
        if self._lend is None:
            raise BackendError(
                f"{replica.server.name} has no weights, and nothing lends them to it",
                fix="set inference.backend.weights_dir to a folder that every machine sees under the same path",
            )
        while replica.version != self.version:
            async with self._lend("a server that has started") as weights:
                if weights.version > self.version:  # As where a resumed run repeats steps before anything is sampled.
                    self._newest = dataclasses.replace(self._newest, version=weights.version)
                transfer = await self._way(weights)
                await control.fits(self._client, replica.url, list(weights.names()))
                await self._pause(replica, "abort")
                with replica.busy():
                    servers = {replica.url: (description.workers, replica.life)}
                    sent = await self._sent(transfer, weights, servers, description.dtype)
                for fault in (*sent.faults.values(), *sent.refusals.values()):
                    raise BackendError(f"{replica.server.name} did not take its weights: {fault}")
                await self._let_go_on(replica, replica.life, weights, "abort")
            await self._caches.before_updates(replica, description)

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
        if self._newest.is_sent and self._lend is not None:
            async with self._lend("the comparison of servers that differ") as weights:
                for held in found.values():
                    if await unlike(held, weights):
                        return held
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

    async def _check(self, replicas: Iterable[Replica], folder: Path) -> list[Checked]:
        """Ask all whether they can take the weights in ``folder``."""
        return await self._asked(replicas, lambda each: control.check(self._client, each.url, folder))

    async def _asked(self, replicas: Iterable[Replica], ask: Callable[[Replica], Awaitable[None]]) -> list[Checked]:
        asked = [(each, each.life) for each in replicas]
        checks = (each.while_ready(ask(each)) for each, _ in asked)
        faults = await asyncio.gather(*checks, return_exceptions=True)
        return [Checked(*who, fault) for who, fault in zip(asked, faults, strict=True)]

    async def _replace(self, checked: Checked) -> None:
        replica, life = checked.replica, checked.life
        try:
            if checked.fault is not None:
                raise checked.fault
            await replica.while_ready(self._give(replica, self._newest, self._under_way))
        except BaseException as error:  # Cancelled too: its server may be paused, or be between two versions.
            take_out(replica, life, error)
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

    async def _prove_sent(self, replica: Replica, weights: Weights) -> None:
        """As ``_prove``, against the ``weights`` themselves."""
        if replica in self._changed:
            return
        held = await control.held_tensors(self._client, replica.url)
        if held.tensors is None:
            self._say(
                f"{replica.server.name} serves weights that cannot be held against the learner's: {held.inability}"
            )
            return
        other = await unlike(held, weights)
        if other and (replica.life > 1 or self.version != self._first):
            raise control.Unlike(f"the server at {replica.url} has other numbers in {other} than were sent to it")
        if other:
            inability = self._changed[replica] = f"vLLM changes tensors as it loads them: {other}"
            self._say(f"{replica.server.name} serves weights that cannot be held against the learner's: {inability}")

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
