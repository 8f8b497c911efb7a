"""Hundreds of sessions at once: none waits for another's lock, and nothing of them is left behind.

``python -m tests.benchmarks scale`` measures thousands.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncGenerator

import pytest
from tests.gateway.conftest import ScriptedBackend

from agentrl.config.prices import PricesSection
from agentrl.costs.meter import CostMeter
from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.gateway.contract import Exchange
from agentrl.gateway.queueing import QueueLimit
from agentrl.inference.contract import Capabilities, Chunk, GenerationRequest

SESSIONS = 300
BODY = b'{"messages": [{"role": "user", "content": "What is 12 * 34?"}]}'


class Instant:
    """A backend that answers at once, except sessions that are to wait."""

    def __init__(self, renderer) -> None:
        scripted = ScriptedBackend(renderer)
        self.ids = [*renderer.vocabulary.encode("It is 408."), scripted.end]
        self.chunk = scripted.chunk
        self.held: set[str] = set()
        self.release = asyncio.Event()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        if request.session in self.held:
            await self.release.wait()
        yield self.chunk(self.ids)


@pytest.fixture
def instant(renderer) -> Instant:
    return Instant(renderer)


def gateway_of(instant, renderer) -> Gateway:
    completer = EngineCompleter(instant, Capabilities(1024, 1000), renderer, meter=CostMeter(PricesSection()))
    return Gateway(QueueLimit(completer, running=1000, waiting=1000))


@pytest.fixture
def many(renderer, instant):
    gateway = gateway_of(instant, renderer)
    yield gateway
    gateway.stop()


def call_of(session) -> Exchange:
    path = f"{session.base_url.removeprefix('http://gateway.invalid')}/chat/completions"
    return Exchange("POST", path, BODY, {"authorization": f"Bearer {session.api_key}"}, in_process=True)


def opened(gateway: Gateway, count: int = SESSIONS) -> list:
    return [gateway.open_session(SessionSettings(training=True, seed_key=(number,))) for number in range(count)]


async def all_answered(gateway, sessions) -> None:
    async with asyncio.timeout(60):
        replies = await asyncio.gather(*(gateway.answer(call_of(session)) for session in sessions))
    assert [reply.status for reply in replies] == [200] * len(sessions)


def test_sessions_that_wait_delay_no_call_of_another(many, instant):
    async def scenario():
        sessions = opened(many)
        waiting, others = sessions[::3], [session for session in sessions if session not in sessions[::3]]
        instant.held = {session.id for session in waiting}
        held = [asyncio.ensure_future(many.answer(call_of(session))) for session in waiting]
        await all_answered(many, others)
        assert not any(each.done() for each in held)
        assert many.traffic.under_way == len(waiting)
        instant.release.set()
        assert [reply.status for reply in await asyncio.gather(*held)] == [200] * len(waiting)
        assert (many.traffic.under_way, many.traffic.expected) == (0, 0)

    asyncio.run(scenario())


def test_a_call_takes_no_lock_but_its_own_sessions(instant, renderer, monkeypatch):
    """Every lock there is is held, but those of one session: its call is answered all the same."""
    made: list[object] = []
    lock = threading.Lock

    class Watched:
        def __init__(self) -> None:
            self._lock = lock()
            made.append(self)

        def __enter__(self):
            return self._lock.__enter__()

        def __exit__(self, *error):
            return self._lock.__exit__(*error)

        def acquire(self, *arguments, **options):
            return self._lock.acquire(*arguments, **options)

        def release(self):
            self._lock.release()

    monkeypatch.setattr(threading, "Lock", Watched)
    gateway = gateway_of(instant, renderer)
    first, blocked = opened(gateway, 2)
    shared = [each for each in made if not _is_of(first, each)]
    assert len(shared) >= 6, "those of the gateway, its sessions and clients, the meter, and of the other session"
    monkeypatch.undo()
    for each in shared:
        each.acquire()
    answered: list[int] = []

    def answer() -> None:
        answered.append(asyncio.run(gateway.answer(call_of(first))).status)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(20)
    for each in shared:
        each.release()
    assert answered == [200], "a call of one session waited for a lock that is not its own"
    asyncio.run(all_answered(gateway, [first, blocked]))
    gateway.stop()


def _is_of(session, lock) -> bool:
    return lock in (session._lock, session.retries._lock, session.draws._lock)


def test_nothing_of_a_session_is_left_once_it_is_closed(many):
    async def scenario():
        sessions = opened(many)
        await all_answered(many, sessions)
        for session in sessions:
            session.close()
        assert many.traffic.under_way == many.traffic.expected == 0
        assert many._sessions.all() == []
        return [weakref.ref(session) for session in sessions]

    left = asyncio.run(scenario())
    gc.collect()
    assert [each() for each in left if each() is not None] == []
