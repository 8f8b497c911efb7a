"""A replica is watched, and brought back with the newest weights when it is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from servers import FAKE, fake_server, nothing_left, processes, run
from stub import Answer, stub

from agentrl.errors import BackendError
from agentrl_vllm import replica as replicas
from agentrl_vllm.client import Client, ServerFailed
from agentrl_vllm.replica import Replica, find_fault
from agentrl_vllm.server import Server

LOOKS = 6


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_ASK_S", 0.01)
    monkeypatch.setattr(replicas, "_PATIENCE_S", 0.05)


def watched(url: str) -> Any:
    return SimpleNamespace(url=url, alive=True)


async def failing(path: str, body: Any) -> Answer:
    return 500, {"error": {"message": "EngineCore encountered an issue"}}


async def silent(path: str, body: Any) -> Answer:
    await asyncio.sleep(600)
    return None


@pytest.mark.usefixtures("impatient")
def test_an_engine_that_dies_while_it_is_given_weights_is_lost() -> None:
    async def scenario() -> None:
        async with stub(failing) as server, Client(60) as client:
            assert "did not answer" in await find_fault(watched(server.url), client, lambda: True)

    run(scenario())


@pytest.mark.usefixtures("impatient")
def test_a_server_that_has_closed_its_socket_meanwhile_is_lost_too() -> None:
    async def scenario() -> None:
        async with stub(failing) as server:
            pass
        async with Client(60) as client:
            assert "did not answer" in await find_fault(watched(server.url), client, lambda: True)

    run(scenario())


@pytest.mark.usefixtures("impatient")
def test_an_engine_that_is_silent_is_lost_only_where_it_is_given_no_weights() -> None:
    async def scenario() -> None:
        async with stub(silent) as server, Client(60) as client:
            watching = asyncio.ensure_future(find_fault(watched(server.url), client, lambda: len(server.asked) < LOOKS))
            assert "did not answer" in await watching
            assert len(server.asked) > LOOKS

    run(scenario())


class Run:
    """What a run knows of its weights, and the servers that were made of them."""

    def __init__(self, folder: Path, options: dict[str, Any] | None = None) -> None:
        self.log = folder / "log"
        self.newest = (Path("/weights/0"), 0)
        self.options: dict[str, Any] = options or {}
        self.made: list[Path] = []
        self.said: list[str] = []
        self.client = Client(5)
        self.replica = self.build()

    def build(self, **options: Any) -> Replica:
        return Replica(
            0, self._make, lambda: self.newest, self._admit, client=self.client, say=self.said.append, **options
        )

    def _make(self, weights: Path) -> Server:
        self.made.append(weights)
        return fake_server(self.log, **self.options)

    async def _admit(self, replica: Replica) -> None:
        assert replica.state == "starting"
        replica.version = self.newest[1]

    def server(self) -> psutil.Process:
        [serving] = [each for each in processes(self.log) if each.cmdline()[1:2] == [str(FAKE)]]
        return serving


@asynccontextmanager
async def started(folder: Path, **options: Any) -> AsyncIterator[Run]:
    run = Run(folder, options)
    await run.replica.start()
    try:
        yield run
    finally:
        await run.replica.stop()
        await run.client.close()
        assert nothing_left(run.log)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (what is waited for is the state of processes)
            await asyncio.sleep(0.02)


def test_it_is_ready_once_it_is_admitted(tmp_path: Path) -> None:
    async def ready() -> None:
        async with started(tmp_path) as run:
            assert (run.replica.state, run.replica.version, run.replica.life) == ("ready", 0, 1)
            assert run.replica.url == run.replica.server.url
        assert run.replica.state == "out"
        await run.replica.stop()

    run(ready())


def test_one_that_does_not_start_raises_and_leaves_nothing(tmp_path: Path) -> None:
    async def refused() -> None:
        run = Run(tmp_path)
        run.replica._server = fake_server(run.log, exit=1)
        with pytest.raises(BackendError, match="ended with exit code 1"):
            await run.replica.start()
        await run.replica.stop()
        assert nothing_left(run.log)

    run(refused())


def test_one_that_is_killed_is_brought_back_with_the_newest_weights(tmp_path: Path) -> None:
    async def killed() -> None:
        async with started(tmp_path) as run:
            url = run.replica.url
            run.newest = (Path("/weights/5"), 5)
            run.server().kill()
            await until(lambda: run.replica.state == "starting")
            assert run.replica.version is None
            assert run.replica.reason is not None
            assert run.replica.reason.startswith("it was ended by SIGKILL")
            await until(lambda: run.replica.state == "ready")
            assert (run.replica.version, run.replica.life) == (5, 2)
            assert run.made == [Path("/weights/0"), Path("/weights/5")]
            assert run.replica.url != url
            assert any("is taken out: it was ended by SIGKILL" in text for text in run.said)

    run(killed())


@pytest.mark.parametrize("how", ["all of it", "its engine"])
def test_one_that_hangs_is_ended_and_brought_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(replicas, "_ASK_S", 0.1)
    monkeypatch.setattr(replicas, "_PATIENCE_S", 0.3)
    stuck = tmp_path / "stuck"

    async def hung() -> None:
        async with started(tmp_path, stuck=str(stuck)) as run:
            first = run.server()
            if how == "its engine":
                stuck.touch()
                assert await run.client.get(run.replica.url, "/health") == {}
            else:
                first.suspend()
            await until(lambda: run.replica.state == "starting")
            stuck.unlink(missing_ok=True)
            await until(lambda: run.replica.life == 2 and run.replica.state == "ready")
            assert run.replica.reason == "its engine did not answer GET /is_sleeping 3 times"
            assert not first.is_running()

    run(hung())


def test_whoever_finds_it_failing_may_take_it_out_from_any_thread(tmp_path: Path) -> None:
    async def failing() -> None:
        async with started(tmp_path) as run:
            life = run.replica.life
            threads = [threading.Thread(target=run.replica.fail, args=("it is slow",)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert run.replica.state == "starting"
            await until(lambda: run.replica.state == "ready")
            assert run.replica.life == 2
            run.replica.fail("what its former server did", life=life)
            assert run.replica.state == "ready"

    run(failing())


def test_one_that_cannot_be_brought_back_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_BACKOFF_S", 0.01)

    async def lost() -> None:
        async with started(tmp_path) as run:
            run.options = {"exit": 3, "lines": ["RuntimeError: no memory"]}
            run.server().kill()
            await until(lambda: run.replica.state == "out")
            assert run.replica.reason is not None
            assert "RuntimeError: no memory" in run.replica.reason
            assert run.said[-1] == "the fake server is given up after 3 attempts"
            assert nothing_left(run.log)

    run(lost())


def test_one_that_is_lost_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_BACKOFF_S", 0.01)

    async def unsteady() -> None:
        async with started(tmp_path) as run:
            for life in (1, 2, 3):
                await until(lambda life=life: (run.replica.life, run.replica.state) == (life, "ready"))
                run.replica.fail("a request ended it")
            await until(lambda: run.replica.state == "out")
            assert run.replica.reason == "a request ended it"
            assert nothing_left(run.log)

    run(unsteady())


def test_it_can_be_stopped_while_it_is_brought_back(tmp_path: Path) -> None:
    async def stopped() -> None:
        async with started(tmp_path) as run:
            run.options = {"never": True}
            run.server().kill()
            await until(lambda: len(run.made) == 2 and bool(processes(run.log)))
        assert run.replica.state == "out"

    run(stopped())


def test_where_it_cannot_be_admitted_that_is_a_failed_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_BACKOFF_S", 0.01)

    async def unadmitted() -> None:
        async with started(tmp_path) as run:

            async def refuse(replica: Replica) -> None:
                raise ValueError("another version")

            run.replica._admit = refuse
            run.server().kill()
            await until(lambda: run.replica.state == "out")
            assert run.replica.reason == "another version"

    run(unadmitted())


def test_a_call_ends_with_its_result_or_as_soon_as_the_replica_is_lost(tmp_path: Path) -> None:
    async def calling() -> None:
        async with started(tmp_path) as run:
            replica = run.replica
            assert await replica.while_ready(asyncio.sleep(0, "an answer")) == "an answer"
            with pytest.raises(ValueError, match="of its own"):
                await replica.while_ready(raising())
            waiting = asyncio.create_task(replica.while_ready(asyncio.sleep(60)))
            await asyncio.sleep(0)
            await asyncio.to_thread(replica.fail, "it hangs")
            with pytest.raises(ServerFailed, match="it hangs"):
                await waiting
            with pytest.raises(ServerFailed, match="it hangs"):
                await replica.while_ready(asyncio.sleep(60))
        with pytest.raises(ServerFailed):
            await replica.while_ready(asyncio.sleep(60))

    async def raising() -> None:
        raise ValueError("of its own")

    run(calling())


def test_a_call_that_is_given_up_is_cancelled(tmp_path: Path) -> None:
    async def calling() -> None:
        async with started(tmp_path) as run:
            call = asyncio.ensure_future(asyncio.sleep(60))
            waiting = asyncio.create_task(run.replica.while_ready(call))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert call.cancelled()

    run(calling())


def test_it_knows_what_its_server_was_made_of_and_nothing_of_its_weights_until_it_is_admitted(tmp_path: Path) -> None:
    async def remade() -> None:
        async with started(tmp_path) as run:
            assert run.replica.folder == Path("/weights/0")
            run.newest = (Path("/weights/5"), 5)
            seen: list[Any] = []

            async def admit(replica: Replica) -> None:
                seen.append((replica.folder, replica.version))

            run.replica._admit = admit
            run.replica.fail("it hangs")
            await until(lambda: run.replica.state == "ready")
            assert seen == [(Path("/weights/5"), None)]

    run(remade())


def test_one_that_is_given_weights_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_ASK_S", 0.01)
    monkeypatch.setattr(replicas, "_PATIENCE_S", 0.05)

    async def loading() -> None:
        async with started(tmp_path) as run:
            with run.replica.busy():
                run.server().suspend()
                await asyncio.sleep(2)
                assert run.replica.state == "ready"
            await until(lambda: run.replica.life == 2 and run.replica.state == "ready")

    run(loading())


def test_an_admission_that_takes_too_long_is_told_by_its_stage_and_the_last_lines(tmp_path: Path) -> None:
    async def late() -> None:
        run = Run(tmp_path, {"lines": ["compiling batched_count_greater_than"]})
        replica = run.build(start_timeout=0.2)

        async def wait(replica: Replica) -> None:
            replica.phase = "being asked for its first tokens"
            await asyncio.sleep(60)

        replica._admit = wait
        with pytest.raises(BackendError) as caught:
            await replica.start()
        assert caught.value.message == (
            "the fake server was not ready after 0.2 s, still being asked for its first tokens; "
            "it printed last: compiling batched_count_greater_than"
        )
        assert caught.value.fix == "raise inference.backend.start_timeout"
        assert nothing_left(run.log)

    run(late())


def test_one_that_cannot_be_watched_is_given_up_with_its_reason_and_still_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*watched: Any) -> str:
        raise OSError("too much of everything")

    monkeypatch.setattr(replicas, "find_fault", broken)

    async def unwatched() -> None:
        async with started(tmp_path) as run:
            await until(lambda: run.replica.state == "out")
            assert run.replica.reason == "it cannot be watched: too much of everything"
            assert run.said[-1] == "the fake server is given up: it cannot be watched: too much of everything"

    run(unwatched())


def test_one_whose_log_is_gone_is_brought_back_as_any_other(tmp_path: Path) -> None:
    async def unlogged() -> None:
        async with started(tmp_path) as run:
            run.log.unlink()
            run.server().kill()
            await until(lambda: run.replica.life == 2 and run.replica.state == "ready")

    run(unlogged())
