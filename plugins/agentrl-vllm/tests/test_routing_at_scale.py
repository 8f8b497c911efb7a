"""Thousands of sessions over replicas that are lost and come back: each stays where its prefix is, evenly spread."""

from __future__ import annotations

import random
import threading
from collections import Counter
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl_vllm import fleet
from agentrl_vllm.fleet import Router

REPLICAS = [f"replica {number}" for number in range(8)]


def ask(router: Router[str], ready: list[str], session: str) -> str:
    with router.lease(ready, session) as replica:
        return replica


def spread(homes: dict[str, str], ready: list[str]) -> int:
    """By how many sessions the fullest of the replicas that are ready is fuller than the emptiest."""
    counts = Counter(homes.values())
    return max(counts[each] for each in ready) - min(counts[each] for each in ready)


def test_five_thousand_sessions_stay_at_home_and_only_those_of_a_lost_replica_move() -> None:
    router: Router[str] = Router()
    chance, sessions = random.Random(0), [f"session {number}" for number in range(5000)]
    homes = {session: ask(router, REPLICAS, session) for session in sessions}
    assert spread(homes, REPLICAS) <= 1
    for lost in ("replica 3", "replica 0", "replica 3"):
        ready = [each for each in REPLICAS if each != lost]
        chance.shuffle(sessions)
        before, homes = homes, {session: ask(router, ready, session) for session in sessions}
        moved = {session for session in sessions if homes[session] != before[session]}
        assert moved == {session for session in sessions if before[session] == lost}
        assert spread(homes, ready) <= 1 + spread(before, ready), "those that move spread over all that are left"
        again = {session: ask(router, REPLICAS, session) for session in sessions}
        assert again == homes, "nobody moves back: the prefix is where it was computed last"
        new = [f"new after {lost}, {len(sessions)}, {number}" for number in range(2 * len(moved))]
        homes |= {session: ask(router, REPLICAS, session) for session in new}
        sessions += new
        assert spread(homes, REPLICAS) <= 2, "new ones go where there are few"


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sets(st.sampled_from(REPLICAS[:4]), min_size=1), st.booleans())),
)
def test_whatever_comes_and_goes_a_session_moves_only_where_its_replica_is_not_there(
    asked: list[tuple[int, set[str], bool]],
) -> None:
    router: Router[str] = Router()
    homes: dict[str, str] = {}
    with ExitStack() as held:
        for number, ready, holds in asked:
            session = f"session {number}"
            lease = router.lease(sorted(ready), session)
            chosen = held.enter_context(lease) if holds else ask(router, sorted(ready), session)
            assert chosen in ready
            assert chosen == homes.get(session, chosen) or homes[session] not in ready
            homes[session] = chosen
    assert all(not under_way for under_way in router._under_way.values())


def test_nothing_grows_beyond_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_REMEMBERED", 500)
    router: Router[str] = Router()
    for number in range(20_000):
        ask(router, REPLICAS, f"session {number}")
    assert len(router._sessions) == sum(map(len, router._homes.values())) == 500
    assert set(router._sessions) == {f"session {number}" for number in range(19_500, 20_000)}
    assert {len(under_way) for under_way in router._under_way.values()} == {0}


def test_threads_that_ask_at_once_leave_nothing_under_way_and_no_session_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "_REMEMBERED", 300)
    router: Router[str] = Router()
    wrong: list[object] = []

    def hammer(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(3000):
                ready = chance.sample(REPLICAS, chance.randint(1, 8))
                if ask(router, ready, f"session {chance.randrange(400)}") not in ready:
                    wrong.append(ready)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert {len(under_way) for under_way in router._under_way.values()} == {0}
    assert len(router._sessions) <= 300
