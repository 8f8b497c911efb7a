"""Sessions stay where their prefix is; new ones go where least is under way."""

from __future__ import annotations

from contextlib import ExitStack

from agentrl_vllm.routing import Router


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
