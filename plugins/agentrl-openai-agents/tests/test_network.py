"""Nothing goes anywhere but to the gateway: no traces, no calls of the models that agents name."""

from __future__ import annotations

import socket
from typing import Any

import agents
import pytest
from agents import Agent
from agents.tracing import TracingProcessor

from agentrl.testing import tool_call


class Recorder(TracingProcessor):
    """Notes what would have been uploaded."""

    def __init__(self) -> None:
        self.noted: list[object] = []

    def on_trace_start(self, trace: object) -> None:
        self.noted.append(trace)

    def on_trace_end(self, trace: object) -> None:
        self.noted.append(trace)

    def on_span_start(self, span: object) -> None:
        self.noted.append(span)

    def on_span_end(self, span: object) -> None:
        self.noted.append(span)

    def shutdown(self) -> None:
        """Nothing to end."""

    def force_flush(self) -> None:
        """Nothing waits."""


def without_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Who is looked up or connected to from now on; everybody is refused."""
    addressed: list[object] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        addressed.append(arguments)
        raise OSError("there is no network here")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return addressed


def test_a_run_traces_nothing_and_reaches_nobody(player_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-somebody-pays-for-this")
    recorder = Recorder()
    agents.set_trace_processors([recorder])
    helper = Agent(name="Helper", model="gpt-5.4")
    last = Agent(name="Last", model="o3")
    agent = Agent(name="Any", model="gpt-4.1", tools=[helper.as_tool("help", "Helps.")], handoffs=[last])
    with player_of(agent) as running:
        addressed = without_network(monkeypatch)  # The gateway's server is there by now.
        script = [tool_call("help", {"input": "?"}), "85", tool_call("transfer_to_last", {}), "It is 85."]
        (played,) = running.play(script, {"question": "?", "answer": "85"})
    assert (played.episode.reward, len(played.episode.calls)) == (1.0, 4)
    assert recorder.noted == []
    assert addressed == []
