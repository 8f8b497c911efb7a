"""The learner's weights on their way into the servers: each has those of the newest version, or is taken out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentrl.errors import AgentRLError, one_line
from agentrl.inference.contract import Weights
from agentrl_vllm import engine
from agentrl_vllm.client import Client
from agentrl_vllm.folders import WeightFolders, choose_root
from agentrl_vllm.probe import Probe
from agentrl_vllm.replica import Replica
from agentrl_vllm.settings import VllmSettings

__all__ = ["WeightSync"]


@dataclass(frozen=True, slots=True)
class _Newest:
    folder: Path
    version: int


class WeightSync:
    """What a server has to have loaded, and how it gets it. Its coroutines belong to one event loop.

    During an update ``version`` changes first, before any server is paused, and a replica's own ``version`` once its
    server has confirmed it, before that samples again.
    """

    def __init__(self, settings: VllmSettings, client: Client, folder: Path, version: int) -> None:
        """``folder`` holds the model that the servers start with, whose weights are of ``version``."""
        self._client = client
        self._newest = _Newest(folder.absolute(), version)
        self._folders = WeightFolders(choose_root(settings.weights_dir, folder))
        self._probe = Probe(client, settings.probe_updates, settings.probe_every)

    @property
    def version(self) -> int:
        """That of the weights that a token sampled from now on should be of."""
        return self._newest.version

    def newest(self) -> tuple[Path, int]:
        """The model folder that a server which starts now has to load, and its version."""
        return self._newest.folder, self._newest.version

    async def put(self, weights: Weights, replicas: Sequence[Replica]) -> None:
        """Put ``weights`` into every replica that is ready; one that does not confirm them is taken out.

        Raises ``BackendError`` where they cannot be written, or fit no server's model, which then are as they were; and
        where a probe shows that the servers give other logprobs than the learner.
        """
        folder = await asyncio.to_thread(self._folders.write, weights)
        try:
            ready = await self._willing([each for each in replicas if each.state == "ready"], folder)
        except BaseException:
            self._folders.keep([self._newest.folder])
            raise
        older, self._newest = self._newest, _Newest(folder, weights.version)
        await asyncio.gather(*(self._replace(replica, self._newest) for replica in ready))
        # A server that is starting may be reading those that it was started with.
        is_read = any(replica.state == "starting" for replica in replicas)
        self._folders.keep([folder, older.folder] if is_read else [folder])
        await self._probe.after_update(weights, [replica for replica in ready if replica.state == "ready"])

    async def admit(self, replica: Replica) -> None:
        """Bring a server that has just started to the newest weights, and set the replica's ``version``.

        Raises ``BackendError`` where it does not take them, or where weights cannot be handed over at all.
        """
        self._folders.open()
        url = replica.url
        description = await engine.describe(self._client, url)
        loaded = description.folder
        while replica.version != self.version:
            newest = self._newest
            if loaded != str(newest.folder):
                # Before it is paused: a server that is refused goes on for others.
                newest = await self._visible(url, newest)
            await engine.pause(self._client, url)
            if loaded != str(newest.folder):
                await engine.replace(self._client, url, newest.folder)
                loaded = str(newest.folder)
            await engine.stamp(self._client, url, newest.version)
            await engine.resume(self._client, url)
            await self._probe.before_updates(url, description)
            replica.version = newest.version

    def close(self) -> None:
        """Remove all folders. Safe to call twice."""
        self._folders.close()

    async def _willing(self, replicas: Sequence[Replica], folder: Path) -> list[Replica]:
        """Those whose servers would take the weights in ``folder``; all others are taken out.

        Raises ``Refused`` where none would and one says why.
        """
        lives = [replica.life for replica in replicas]
        checks = (engine.check(self._client, replica.url, folder) for replica in replicas)
        outcomes = await asyncio.gather(*checks, return_exceptions=True)
        refusals = [outcome for outcome in outcomes if isinstance(outcome, engine.Refused)]
        if refusals and all(outcome is not None for outcome in outcomes):
            raise refusals[0]
        for replica, life, outcome in zip(replicas, lives, outcomes, strict=True):
            if outcome is not None:
                _take_out(replica, life, outcome)
        return [replica for replica, outcome in zip(replicas, outcomes, strict=True) if outcome is None]

    async def _replace(self, replica: Replica, newest: _Newest) -> None:
        life, url = replica.life, replica.url
        try:
            await engine.pause(self._client, url)
            await engine.replace(self._client, url, newest.folder)
            await engine.stamp(self._client, url, newest.version)
            if replica.life == life:
                replica.version = newest.version
            await engine.resume(self._client, url)
        except BaseException as error:  # Cancelled too: its server may be paused, or be between two versions.
            _take_out(replica, life, error)
            if not isinstance(error, Exception):
                raise

    async def _visible(self, url: str, newest: _Newest) -> _Newest:
        """``newest`` in a folder that the server sees: the start model may be elsewhere on its machine."""
        try:
            await engine.check(self._client, url, newest.folder)
        except engine.Refused:
            if self._folders.holds(newest.folder):
                raise
            copied = _Newest(await asyncio.to_thread(self._folders.copy, newest.folder), newest.version)
            await engine.check(self._client, url, copied.folder)
            if newest == self._newest:
                self._newest = copied
            return copied
        return newest


def _take_out(replica: Replica, life: int, error: BaseException) -> None:
    text = error.message if isinstance(error, AgentRLError) else one_line(error) or type(error).__name__
    replica.fail(f"it did not take new weights: {text}", life=life)
