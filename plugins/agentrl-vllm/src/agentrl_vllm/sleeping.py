"""Servers that sleep while the learner steps, and requests that wait for them to wake."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence

from agentrl import BackendError
from agentrl_vllm import control
from agentrl_vllm.client import Client
from agentrl_vllm.replica import Replica

__all__ = ["Naps"]

_LOOK_S = 0.02
_REST_S = 60.0
"""Seconds in which what is under way has to end before servers sleep."""


class Naps:
    """Has the servers of a run sleep and wake. ``awake`` may be entered from any loop, all else belongs to one."""

    def __init__(self, client: Client, *, level: int) -> None:
        """``level`` is vLLM's: 1 keeps the weights in the CPU's memory, 2 gives them up."""
        self._client = client
        self._level = level
        self._lock = threading.Lock()
        self._under_way = 0
        self._asleep = False
        self._ended = False

    @property
    def asleep(self) -> bool:
        """Whether the servers sleep now."""
        return self._asleep

    @contextlib.asynccontextmanager
    async def awake(self) -> AsyncIterator[None]:
        """Within the block no server falls asleep; entering it waits while they sleep.

        They sleep no longer than the learner's step may take; whoever waits less long has a deadline of its own. Raises
        ``BackendError`` where they are never going to wake.
        """
        while not self._enter():  # noqa: ASYNC110 - it is set from another loop
            await asyncio.sleep(_LOOK_S)
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def end(self) -> None:
        """The servers end: who waits for them waits in vain."""
        self._ended = True

    async def until_awake(self) -> None:
        """Wait while the servers sleep: the memory that one would start in is the learner's."""
        while self._asleep:  # noqa: ASYNC110 - it is set from another loop
            await asyncio.sleep(_LOOK_S)

    async def sleep(self, replicas: Sequence[Replica]) -> None:
        """Have all that are ready give up their memory; safe to call again.

        One that does not is taken out. Raises ``BackendError`` where requests are under way that do not end.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _REST_S
        while not self._close():
            if loop.time() > deadline:
                raise BackendError(
                    f"{self._under_way} requests were under way {_REST_S:g} s after the servers were to sleep",
                    fix="lower rollout.max_tokens, or give the servers a device of their own",
                )
            await asyncio.sleep(_LOOK_S)
        await self._all(replicas, f"/sleep?level={self._level}&mode=wait", "fall asleep")

    async def wake(self, replicas: Sequence[Replica]) -> None:
        """Have all take their memory up again; safe to call again. One that does not is taken out."""
        if self._asleep:
            await self._all(replicas, "/wake_up", "wake")
            self._asleep = False

    async def _all(self, replicas: Sequence[Replica], path: str, what: str) -> None:
        ready = [(each, each.life) for each in replicas if each.state == "ready"]
        asked = (self._one(each, path) for each, _ in ready)
        for (replica, life), fault in zip(ready, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(fault, BackendError):
                replica.fail(f"it did not {what}: {fault.message}", life=life)
            elif fault is not None:
                raise fault

    async def _one(self, replica: Replica, path: str) -> None:
        with replica.busy():
            await replica.while_ready(self._client.post(replica.url, path, seconds=control.LOAD_S))

    def _enter(self) -> bool:
        with self._lock:
            if self._asleep and self._ended:
                raise BackendError("the vLLM backend was stopped while its servers slept")
            if self._asleep:
                return False
            self._under_way += 1
            return True

    def _close(self) -> bool:
        with self._lock:
            if self._under_way:
                return False
            self._asleep = True
            return True
