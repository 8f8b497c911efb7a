"""Admission: episodes start no faster than the engine serves their calls, and the engine is never left without work."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.rollout.requests import requests_of

from agentrl.agents.binding import bind_agent
from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.gateway.traffic import Traffic
from agentrl.inference.contract import Capabilities, Chunk, EngineLoad, GenerationRequest
from agentrl.rollout.admission import Admission, Demand, default_line, line_of, may_start
from agentrl.rollout.dispatcher import Dispatcher, FailureBudget
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.rollout.inline import InlineRunner
from agentrl.tokens.selection import load_renderer

COUNTS = st.integers(0, 300)
LOADS = st.none() | st.builds(EngineLoad, COUNTS, COUNTS)
DEMANDS = st.builds(Demand, COUNTS, COUNTS, st.integers(1, 300), LOADS)
LINES = st.integers(1, 80)


# The rule


@given(DEMANDS, LINES)
def test_an_episode_that_would_be_the_only_one_always_starts(demand, line):
    assert may_start(0, demand, line)


@given(DEMANDS, LINES, st.integers(1, 1000))
def test_while_the_engine_has_room_episodes_start(demand, line, in_flight):
    room = demand.under_way + demand.expected < demand.at_once
    says_full = demand.reported is not None and demand.reported.waiting > 0 and demand.under_way > 0
    if room and not says_full:
        assert may_start(in_flight, demand, line)


@given(DEMANDS, LINES, st.integers(1, 1000), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_more_to_do_never_lets_an_episode_start_that_less_held_back(demand, line, in_flight, calls, expected, waiting):
    report = demand.reported and replace(demand.reported, waiting=demand.reported.waiting + waiting)
    more = replace(demand, under_way=demand.under_way + calls, expected=demand.expected + expected, reported=report)
    assert line_of(more) >= line_of(demand)
    assert may_start(in_flight, demand, line) or not may_start(in_flight, more, line)


@given(DEMANDS, LINES, st.integers(1, 1000))
def test_a_line_that_is_others_holds_nobody_back(demand, line, in_flight):
    quiet = replace(demand, under_way=0, expected=0)
    assert line_of(quiet) == 0
    assert may_start(in_flight, quiet, line)


def test_a_line_is_short_where_it_is_a_quarter_of_what_the_engine_does_at_once():
    assert [default_line(at_once) for at_once in (1, 4, 64, 2000)] == [1, 1, 16, 500]


@dataclass
class Queue:
    """An engine that samples ``slots`` calls at once, whatever it says it can, and each for as long as it says."""

    slots: int
    calls: deque[int] = field(default_factory=deque)
    """What is left of each call; the first ``slots`` are sampled."""

    def load(self) -> EngineLoad:
        return EngineLoad(min(len(self.calls), self.slots), max(0, len(self.calls) - self.slots))

    def advance(self) -> None:
        sampled = [self.calls.popleft() - 1 for _ in range(min(self.slots, len(self.calls)))]
        self.calls.extendleft(left for left in reversed(sampled) if left)


@given(
    slots=st.integers(1, 12),
    beyond=st.integers(0, 12),
    line=st.integers(1, 8),
    lengths=st.lists(st.integers(1, 9), max_size=120),
)
def test_as_many_wait_as_may_and_no_slot_is_free_while_an_episode_waits(slots, beyond, line, lengths):
    """Episodes of one call each, before an engine that says it can do more at once than it can."""
    engine, left = Queue(slots), deque(lengths)
    while left or engine.calls:
        while left and may_start(len(engine.calls), Demand(len(engine.calls), 0, slots + beyond, engine.load()), line):
            engine.calls.append(left.popleft())
        load = engine.load()
        assert load.waiting <= line
        assert load.running == slots or not left
        engine.advance()


# Traffic


def test_sessions_that_were_opened_a_moment_ago_are_expected_to_call():
    now = 100.0
    traffic = Traffic(lambda: now)
    for session in "abc":
        traffic.opened(session)
    traffic.began("a", "call")
    traffic.closed("b")
    assert (traffic.under_way, traffic.expected) == (1, 1)
    now = 104.0
    traffic.opened("d")
    now = 106.0
    assert traffic.expected == 1  # The other one takes its time before it calls.
    traffic.ended("call")
    traffic.ended("call")
    assert traffic.under_way == 0


def test_whoever_waits_for_less_to_do_is_told_once():
    traffic, told = Traffic(), []
    traffic.opened("a")
    traffic.tell_once(lambda: told.append("first"))
    traffic.tell_once(lambda: told.append("second"))
    traffic.began("a", "call")
    assert told == []
    traffic.ended("call")
    traffic.opened("b")
    traffic.closed("b")
    assert told == ["first", "second"]


# Episodes


@dataclass
class Narrow:
    """A backend that samples few calls at once, and counts how many wait."""

    renderer: object
    slots: int
    most_waiting: int = 0
    running: int = 0
    waiting: int = 0

    def __post_init__(self) -> None:
        self.places = asyncio.Semaphore(self.slots)
        vocabulary = self.renderer.vocabulary
        self.ids = (*vocabulary.encode("It is 46."), vocabulary.convert_tokens_to_ids("<|im_end|>"))

    def load(self) -> EngineLoad:
        return EngineLoad(self.running, self.waiting)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        async with self.places:
            self.waiting -= 1
            self.running += 1
            for _ in range(5):
                await asyncio.sleep(0.001)
            self.running -= 1
        yield Chunk(self.ids, (-0.5,) * len(self.ids), (1,) * len(self.ids), finish="stop")


async def one_call(data, *, base_url, api_key, http_client):
    body = {"model": "x", "messages": [{"role": "user", "content": str(data["number"])}]}
    answer = await http_client.post(
        f"{base_url}/chat/completions", json=body, headers={"authorization": f"Bearer {api_key}"}
    )
    return float(answer.status_code == 200)


@pytest.fixture(scope="module")
def renderer(chat_tokenizer):
    return load_renderer(chat_tokenizer)


def rolled_out(renderer, *, at_once, slots, reports=True, line=2, concurrency=60, phases=("train",), groups=20):
    """The groups of each phase, all dispatched at once, and the backend and the admission afterwards."""

    async def scenario():
        backend = Narrow(renderer, slots)
        gateway = Gateway(EngineCompleter(backend, Capabilities(1024, at_once), renderer))
        admission = Admission(gateway.traffic, at_once, line, backend.load if reports else lambda: None)
        runner = EpisodeRunner(
            InlineRunner(bind_agent(one_call, {}, name="agent")), gateway.open_session, None, 30.0, 1
        )

        async def finished(episode):
            await asyncio.sleep(0)

        dispatcher = Dispatcher(runner, concurrency, FailureBudget(0.0, 16), finished, admission)
        rows = [{"number": number} for number in range(groups)]
        settings = SessionSettings(training=True)
        asked = (requests_of(rows, lambda key: settings, samples=4, phase=phase) for phase in phases)
        async with asyncio.timeout(60):
            taken = await asyncio.gather(*(dispatcher.collect(each) for each in asked))
        gateway.stop()
        assert (gateway.traffic.under_way, gateway.traffic.expected) == (0, 0)
        return taken, backend, admission

    return asyncio.run(scenario())


@pytest.mark.parametrize("reports", [True, False])
def test_episodes_wait_to_start_while_the_engines_line_is_long(renderer, reports):
    (groups,), backend, admission = rolled_out(renderer, at_once=4, slots=4, reports=reports)
    assert [episode.reward for group in groups for episode in group.episodes] == [1.0] * 80
    assert backend.most_waiting <= 2 + 1  # One that has a place counts as waiting until it takes it.
    counts = admission.take()
    assert counts["rollout/held_back"] > 10
    assert counts["seconds/held_back"] > 0
    assert admission.take() == {"rollout/held_back": 0.0, "seconds/held_back": 0.0}


def test_an_engine_that_has_room_for_all_holds_nobody_back(renderer):
    _, backend, admission = rolled_out(renderer, at_once=60, slots=60)
    assert admission.take()["rollout/held_back"] == 0
    assert backend.most_waiting <= 60


def test_episodes_that_were_cancelled_before_they_began_are_expected_no_more(renderer):
    async def scenario():
        backend = Narrow(renderer, 4)
        gateway = Gateway(EngineCompleter(backend, Capabilities(1024, 4), renderer))
        admission = Admission(gateway.traffic, 4, 2)

        async def broken():
            yield requests_of([{"number": 0}], lambda key: SessionSettings(training=True), samples=4)[0]
            raise ValueError("no more")

        runner = EpisodeRunner(
            InlineRunner(bind_agent(one_call, {}, name="agent")), gateway.open_session, None, 30.0, 1
        )

        async def finished(episode):
            pass

        dispatcher = Dispatcher(runner, 60, FailureBudget(0.0, 16), finished, admission)
        with pytest.raises(ValueError, match="no more"):
            await dispatcher.collect(broken())
        assert admission.demand() == Demand(0, 0, 4)
        gateway.stop()

    asyncio.run(scenario())


def test_an_evaluation_beside_training_is_not_starved_and_not_counted(renderer):
    taken, _, admission = rolled_out(renderer, at_once=2, slots=2, phases=("train", "eval"), groups=6)
    assert [len(groups) for groups in taken] == [6, 6]
    assert 0 < admission.take()["rollout/held_back"] <= 24
