"""Requests go to replicas that are well, and stay where their prefix is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing
from typing import Any

import pytest
from fleet_of_fakes import FakeReplica
from stub import Answer, Stub, stub

from agentrl.errors import BackendError, PromptTooLong
from agentrl.inference.contract import Chunk
from agentrl_vllm import replica as replicas
from agentrl_vllm.client import Client, ServerFailed
from agentrl_vllm.fleet import Fleet, Router


def test_a_session_stays_with_its_replica_whatever_the_load() -> None:
    router: Router[str] = Router()
    with router.lease(["a", "b"], "mine") as home, ExitStack() as others:
        for _ in range(5):
            others.enter_context(router.lease([home], None))
        with router.lease(["a", "b"], "mine") as again:
            assert again == home


def test_requests_spread_over_replicas_by_what_is_under_way() -> None:
    router: Router[str] = Router()
    with ExitStack() as stack:
        chosen = [stack.enter_context(router.lease(["a", "b", "c"], None)) for _ in range(9)]
        assert sorted(chosen) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    with router.lease(["b"], None), router.lease(["a", "b"], None) as free:
        assert free == "a"


def test_sessions_spread_also_where_none_of_them_asks_right_now() -> None:
    router: Router[str] = Router()
    homes = []
    for number in range(8):
        with router.lease(["a", "b"], f"session {number}") as home:
            homes.append(home)
    assert homes.count("a") == homes.count("b") == 4


def test_a_session_whose_replica_is_gone_moves_and_stays_where_it_went() -> None:
    router: Router[str] = Router()
    with router.lease(["a"], "mine"):
        pass
    with router.lease(["b", "c"], "mine") as second:
        assert second in ("b", "c")
    for _ in range(3):
        with router.lease(["a", "b", "c"], "mine") as again:
            assert again == second


def test_a_request_that_fails_is_under_way_no_more() -> None:
    router: Router[str] = Router()
    for _ in range(3):
        try:
            with router.lease(["a"], None):
                raise RuntimeError
        except RuntimeError:
            pass
    with router.lease(["b"], None), router.lease(["a", "b"], None) as free:
        assert free == "a"


DEADLINE_S = 20.0
TOKEN = Chunk((1,), (-1.0,), (0,), finish="length")


async def well(path: str, body: Any) -> Answer:
    return 200, {}


async def dead(path: str, body: Any) -> Answer:
    return None


async def sick(path: str, body: Any) -> Answer:
    """Well, but for what it is asked to sample."""
    return (200, {}) if path == "/is_sleeping" else (500, {"error": "it broke"})


async def hung(path: str, body: Any) -> Answer:
    """Listens, but its engine does not answer."""
    if path != "/health":
        await asyncio.sleep(DEADLINE_S)
    return 200, {}


async def slow(path: str, body: Any) -> Answer:
    """Well, and samples for longer than anybody waits."""
    if path != "/is_sleeping":
        await asyncio.sleep(DEADLINE_S)
    return 200, {}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_PATIENCE_S", 0.3)


class Table:
    """A fleet of servers that do as their handlers say."""

    def __init__(self, servers: Sequence[Stub], patience: float) -> None:
        self.client = Client(0.5)
        self.servers = servers
        self.replicas = [FakeReplica(server.url) for server in servers]
        self.fleet = Fleet(self.replicas, self.client, patience=patience)  # type: ignore[arg-type]

    async def ask(self, session: str | None = None, before: Sequence[Chunk] = ()) -> list[Chunk]:
        """The chunks of one completion: ``before``, and a token where its server answers."""

        async def chunks(replica: Any) -> AsyncGenerator[Chunk, None]:
            for chunk in before:
                yield chunk
            await self.client.post(replica.url, "/sample", {})
            yield TOKEN

        async with aclosing(self.fleet.sample(session, chunks)) as stream:
            return [chunk async for chunk in stream]

    def sampled(self) -> list[int]:
        """How many requests each server was asked to sample."""
        return [sum(path == "/sample" for path, _ in server.asked) for server in self.servers]


def using(handlers: Sequence[Any], scenario: Callable[[Table], Awaitable[Any]], patience: float = 5) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S), AsyncExitStack() as stack:
            table = Table([await stack.enter_async_context(stub(handler)) for handler in handlers], patience)
            stack.push_async_callback(table.client.close)
            await scenario(table)

    asyncio.run(main())


@pytest.mark.parametrize("fault", [dead, hung])
def test_a_request_whose_server_dies_or_hangs_goes_to_another_and_the_replica_is_taken_out(fault: Any) -> None:
    async def scenario(table: Table) -> None:
        answers = await asyncio.gather(*(table.ask() for _ in range(6)))
        assert answers == [[TOKEN]] * 6
        assert [replica.state for replica in table.replicas] == ["starting", "ready"]
        assert table.servers[0].url in str(table.replicas[0].reason)
        assert table.sampled() == [3, 6]

    using([fault, well], scenario)


def test_a_server_that_is_well_and_fails_at_a_request_stays() -> None:
    async def scenario(table: Table) -> None:
        with pytest.raises(ServerFailed, match="it broke"):
            await table.ask()
        assert table.replicas[0].state == "ready"
        assert table.sampled() == [4], "a request is not tried for ever"

    using([sick], scenario)


def test_a_request_that_is_slow_is_an_error_of_its_own_and_its_server_stays() -> None:
    async def scenario(table: Table) -> None:
        with pytest.raises(BackendError, match=r"took longer than inference\.backend\.request_timeout") as caught:
            await table.ask()
        assert not isinstance(caught.value, ServerFailed), "another server would take as long"
        assert [replica.state for replica in table.replicas] == ["ready", "ready"]
        assert sorted(table.sampled()) == [0, 1]

    using([slow, slow], scenario)


def test_a_server_that_is_given_weights_is_not_taken_out_for_its_silence() -> None:
    async def scenario(table: Table) -> None:
        table.replicas[0].is_busy = True
        with pytest.raises(BackendError):
            await table.ask()
        assert table.replicas[0].state == "ready"

    using([hung], scenario)


def test_one_miss_is_none() -> None:
    answers = iter([None, None, (200, {})])

    async def shaky(path: str, body: Any) -> Answer:
        """Breaks the connection at the request and at the first question after it."""
        return next(answers, (200, {}))

    async def scenario(table: Table) -> None:
        assert await table.ask() == [TOKEN]
        assert table.replicas[0].state == "ready"

    using([shaky], scenario)


def test_all_replicas_are_stopped_also_where_one_cannot_be() -> None:
    stopped: list[str] = []

    class Stuck(FakeReplica):
        async def stop(self) -> None:
            if not stopped:
                stopped.append("first")
                raise OSError("no such process")
            await asyncio.sleep(0.01)
            stopped.append(self.url)

    async def scenario(table: Table) -> None:
        table.fleet.replicas = [Stuck("one"), Stuck("two"), Stuck("three")]  # type: ignore[assignment]
        with pytest.raises(OSError, match="no such process"):
            await table.fleet.stop()
        assert stopped == ["first", "two", "three"]

    using([], scenario)


def test_a_request_that_is_wrong_is_tried_once() -> None:
    async def refuse(path: str, body: Any) -> Answer:
        return 400, {"error": {"message": "longer than the maximum model length"}}

    async def scenario(table: Table) -> None:
        with pytest.raises(PromptTooLong):
            await table.ask()
        assert sorted(table.sampled()) == [0, 1]
        assert [replica.state for replica in table.replicas] == ["ready", "ready"]

    using([refuse, refuse], scenario)


def test_a_completion_of_which_tokens_were_given_out_does_not_begin_again() -> None:
    async def scenario(table: Table) -> None:
        with pytest.raises(ServerFailed):
            await table.ask("mine", before=[Chunk((5,), (-1.0,), (0,))])
        assert table.sampled() == [1, 0]

    using([dead, well], scenario)


def test_a_request_waits_for_a_replica_that_is_brought_back() -> None:
    async def scenario(table: Table) -> None:
        table.replicas[0].state = "starting"
        waiting = asyncio.ensure_future(table.ask())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        table.replicas[0].state = "ready"
        assert await waiting == [TOKEN]

    using([well], scenario)


def test_a_request_that_waits_too_long_says_why_there_is_no_replica() -> None:
    async def scenario(table: Table) -> None:
        table.replicas[0].fail("it ended by SIGKILL")
        with pytest.raises(BackendError, match=r"waited 0\.2 s for a vLLM server to come back: it ended by SIGKILL"):
            await table.ask()

    using([well], scenario, patience=0.2)


def test_where_all_replicas_are_given_up_nothing_waits() -> None:
    async def scenario(table: Table) -> None:
        table.replicas[0].state, table.replicas[0].reason = "out", "it did not start"
        with pytest.raises(BackendError, match="no vLLM server is left: it did not start"):
            await table.ask()

    using([well], scenario)


def test_a_session_stays_with_its_server_until_that_is_lost() -> None:
    async def scenario(table: Table) -> None:
        for _ in range(4):
            await table.ask("mine")
        assert table.sampled() == [4, 0]
        table.replicas[0].fail("it is gone")
        for _ in range(3):
            await table.ask("mine")
        assert table.sampled() == [4, 3]

    using([well, well], scenario)
