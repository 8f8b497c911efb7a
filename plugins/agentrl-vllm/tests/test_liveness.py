"""A server that is given weights may be silent, and has died all the same where it refuses to answer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from servers import run
from stub import Answer, stub

from agentrl_vllm import liveness
from agentrl_vllm.client import Client
from agentrl_vllm.liveness import find_fault

LOOKS = 6


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "_ASK_S", 0.01)
    monkeypatch.setattr(liveness, "_PATIENCE_S", 0.05)


def watched(url: str) -> Any:
    return SimpleNamespace(url=url, alive=True)


async def failing(path: str, body: Any) -> Answer:
    return 500, {"error": {"message": "EngineCore encountered an issue"}}


async def silent(path: str, body: Any) -> Answer:
    await asyncio.sleep(600)
    return None


def test_an_engine_that_dies_while_it_is_given_weights_is_lost() -> None:
    async def scenario() -> None:
        async with stub(failing) as server, Client(60) as client:
            assert "did not answer" in await find_fault(watched(server.url), client, lambda: True)

    run(scenario())


def test_a_server_that_has_closed_its_socket_meanwhile_is_lost_too() -> None:
    async def scenario() -> None:
        async with stub(failing) as server:
            pass
        async with Client(60) as client:
            assert "did not answer" in await find_fault(watched(server.url), client, lambda: True)

    run(scenario())


def test_an_engine_that_is_silent_is_lost_only_where_it_is_given_no_weights() -> None:
    async def scenario() -> None:
        async with stub(silent) as server, Client(60) as client:
            watching = asyncio.ensure_future(find_fault(watched(server.url), client, lambda: len(server.asked) < LOOKS))
            assert "did not answer" in await watching
            assert len(server.asked) > LOOKS

    run(scenario())
