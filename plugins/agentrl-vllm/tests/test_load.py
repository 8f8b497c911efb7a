"""How busy servers are, as their metrics say, asked no more often than somebody wants to know."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stub import Answer, stub

from agentrl.inference.contract import EngineLoad
from agentrl_vllm import load as loads
from agentrl_vllm.client import Client
from agentrl_vllm.load import LoadReports, read_load

METRICS = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="/models/a{b}"} 61.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="/models/a{b}"} 7.0
vllm:num_requests_waiting{engine="1",model_name="/models/a{b}"} 1e1
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 900.0
vllm:kv_cache_usage_perc{engine="0"} 0.97
"""


@pytest.mark.parametrize(
    ("metrics", "load"),
    [
        (METRICS, EngineLoad(61, 17)),
        ("vllm:num_requests_running 2\nvllm:num_requests_waiting 0\n", EngineLoad(2, 0)),
        ("", None),
        ("process_cpu_seconds_total 3.0\n", None),
        ({"detail": "Not Found"}, None),
        (None, None),
    ],
)
def test_the_load_is_read_from_the_gauges_of_all_engines_of_a_server(metrics: object, load: EngineLoad | None) -> None:
    assert read_load(metrics) == load


def test_all_servers_count_and_one_that_says_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "_ANSWER_S", 0.5)
    now = 100.0
    down = False

    async def says(path: str, body: Any) -> Answer:
        assert path == "/metrics"
        return None if down else (200, METRICS)

    async def silent(path: str, body: Any) -> Answer:
        return 404, {}

    async def scenario() -> None:
        nonlocal now, down
        async with stub(says) as first, stub(says) as second, stub(silent) as third, Client(5.0) as client:
            reports = LoadReports(client, lambda: [each.url for each in (first, second, third)], lambda: now)
            assert reports.load() is None, "nothing is known yet, and nobody waits"
            for _ in range(200):
                reports.load()
                await asyncio.sleep(0.01)
                if reports.load() is not None:
                    break
            assert reports.load() == EngineLoad(122, 34)
            assert len(first.asked) == 1, "once in a moment is enough"
            now += 1
            reports.load()
            assert reports._asking is not None
            await asyncio.sleep(0.05)
            await reports._asking
            assert len(first.asked) == 2
            down, now = True, now + 20
            assert reports.load() is None, "what is too old counts no more"
            reports.close()
            await asyncio.sleep(0)
            assert reports.load() is None

    asyncio.run(scenario())
