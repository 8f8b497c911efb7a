"""Servers sleep while the learner steps: what is under way ends first, and what comes waits for them to wake."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fleet_of_fakes import FakeReplica

from agentrl.errors import BackendError, ConfigError
from agentrl.inference.contract import BackendContext, Sleeper
from agentrl_vllm import backend as backends
from agentrl_vllm import sleeping
from agentrl_vllm.backend import VllmBackend
from agentrl_vllm.client import ServerFailed
from agentrl_vllm.sleeping import Naps


class Client:
    """Notes what servers are asked; those in ``broken`` fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.broken: set[str] = set()

    async def post(self, url: str, path: str, body: object = None, *, seconds: float) -> Any:
        assert seconds > 0
        self.asked.append((url, path))
        if url in self.broken:
            raise ServerFailed("it is gone")


async def _slept(level: int) -> list[tuple[str, str]]:
    client, replica = Client(), FakeReplica("http://0")
    naps = Naps(client, level=level)
    await naps.sleep([replica])
    await naps.sleep([replica])
    await naps.wake([replica])
    await naps.wake([replica])
    return client.asked


@pytest.mark.parametrize("level", [1, 2])
def test_servers_sleep_at_the_level_that_is_asked_for_and_wake_once(level: int) -> None:
    asked = asyncio.run(_slept(level))
    nap = ("http://0", f"/sleep?level={level}&mode=wait")
    assert asked == [nap, nap, ("http://0", "/wake_up")]


def test_no_request_begins_while_servers_sleep_and_none_is_cut_off() -> None:
    log: list[str] = []

    async def request(naps: Naps, name: str, seconds: float) -> None:
        async with naps.awake():
            log.append(f"{name} begins")
            await asyncio.sleep(seconds)
            log.append(f"{name} ends")

    async def main() -> None:
        naps, replica = Naps(Client(), level=2), FakeReplica("http://0")
        first = asyncio.create_task(request(naps, "first", 0.1))
        await asyncio.sleep(0)
        await naps.sleep([replica])
        log.append("asleep")
        second = asyncio.create_task(request(naps, "second", 0))
        waiting = asyncio.create_task(naps.until_awake())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        log.append("waking")
        await naps.wake([replica])
        await asyncio.gather(first, second, waiting)

    asyncio.run(main())
    assert log == ["first begins", "first ends", "asleep", "waking", "second begins", "second ends"]


def test_a_server_that_does_not_wake_is_taken_out_and_a_request_that_does_not_end_is_told(monkeypatch) -> None:
    async def main() -> None:
        client = Client()
        naps, lost, well = Naps(client, level=2), FakeReplica("http://0"), FakeReplica("http://1")
        await naps.sleep([lost, well])
        client.broken.add("http://0")
        await naps.wake([lost, well])
        assert (lost.state, well.state) == ("starting", "ready")
        assert lost.reason == "it did not wake: it is gone"
        monkeypatch.setattr(sleeping, "_REST_S", 0.05)
        async with naps.awake():
            with pytest.raises(BackendError, match="1 requests were under way"):
                await naps.sleep([well])

    asyncio.run(main())


def test_a_request_that_waits_for_servers_that_never_wake_is_told() -> None:
    async def main() -> None:
        naps = Naps(Client(), level=2)
        await naps.sleep([])

        async def request() -> None:
            async with naps.awake():
                pass

        waiting = asyncio.create_task(request())
        await asyncio.sleep(0)
        naps.end()
        with pytest.raises(BackendError, match="was stopped while its servers slept"):
            await asyncio.wait_for(waiting, 30)

    asyncio.run(main())


def test_the_backend_sleeps_only_where_it_shares_a_gpu_and_is_refused_where_there_is_none(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(backends, "find_python", lambda given: None)
    plain = VllmBackend(BackendContext(tmp_path))
    assert isinstance(plain, Sleeper)
    assert not plain.sleeps
    monkeypatch.setattr(backends, "find_cuda", lambda: False)
    context = BackendContext(tmp_path, options={"colocate": True})
    with pytest.raises(ConfigError, match="needs vLLM's sleep mode, which needs CUDA, and there is no GPU here"):
        VllmBackend(context)
    monkeypatch.setattr(backends, "find_cuda", lambda: True)
    assert VllmBackend(context).sleeps
