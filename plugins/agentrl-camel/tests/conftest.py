"""CAMEL's own agents on the real gateway, with a scripted backend for the model and no network."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from natives import TASK, Play, Played

from agentrl import Plugins
from agentrl.agents.binding import bind_agent
from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.inference.contract import Capabilities
from agentrl.testing import ScriptedBackend


@pytest.fixture(scope="session")
def backend() -> ScriptedBackend:
    return ScriptedBackend(["nothing"])


@pytest.fixture(scope="session")
def gateway(backend: ScriptedBackend) -> Iterator[Gateway]:
    gateway = Gateway(EngineCompleter(backend, Capabilities(context_length=8192, max_concurrency=8), backend.renderer))
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def play(gateway: Gateway, backend: ScriptedBackend) -> Play:
    """Runs an agent, whatever CAMEL or agentrl call one, on a task while the policy writes ``script``."""

    def play(
        agent: Any,
        *script: Any,
        data: Mapping[str, Any] = TASK,
        override: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Played:
        backend.play(list(script))
        session = gateway.open_session(SessionSettings(training=True, override=override or {}))
        connection = {
            "base_url": session.base_url,
            "api_key": session.api_key,
            "http_client": gateway.http_client(),
            "model": "policy",
        }
        bound = bind_agent(Plugins().adapt_agent(agent), kwargs, name="it")
        try:
            answer = asyncio.run(asyncio.wait_for(bound.call(dict(data), connection), timeout=20))
        except Exception as error:
            answer = error
        session.close()
        return Played(answer, list(session.calls), session.tree, session.refusals)

    return play


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine can be reached."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"something connects to {address}")
        connect(self, address)

    def look_up_here(host: Any, *rest: Any, **more: Any) -> Any:
        if host not in (None, "127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"something looks up {host}")
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
