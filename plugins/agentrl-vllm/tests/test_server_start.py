"""How a server starts: what it waits for is shown, and why it fails is said."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import Handler
from servers import DEADLINE_S, fake_server, nothing_left, processes, run

from agentrl.errors import BackendError
from agentrl_vllm import server as server_module
from agentrl_vllm.command import Command
from agentrl_vllm.server import Server, free_port

LINES = [
    "(APIServer pid=1) INFO 11-24 11:37:02 [model.py:733] Resolved architecture: Qwen3ForCausalLM",
    "(EngineCore pid=2) INFO 11-24 11:37:09 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: …",
    "(Worker pid=3) INFO 11-24 11:37:18 [cpu_model_runner.py:68] Starting to load model /models/tiny...",
]


def refused(starting: Coroutine[Any, Any, None]) -> BackendError:
    with pytest.raises(BackendError) as caught:
        run(starting)
    return caught.value


def test_what_a_start_waits_for_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    server = fake_server(tmp_path / "log", lines=LINES, say=said.append)
    run(server.start())
    try:
        assert said[0].startswith("the fake server is ")
        assert re.fullmatch(r"the fake server is ready at http://127\.0\.0\.1:\d+ after \d+ s", said[-1])
        assert server.alive
    finally:
        server.kill()


def test_a_server_that_ends_at_its_start_shows_what_it_printed_last(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log"
    error = refused(fake_server(log, lines=[*LINES, "ValueError: no weights in /models/tiny"], exit=3).start())
    assert error.message.startswith(
        "the fake server ended with exit code 3 while loading the weights: ValueError: no weights in /models/tiny; "
        "it printed last: (APIServer pid=1) INFO"
    )
    assert error.fix == f"all of its output is in {log}"
    assert "\n" not in str(error)
    assert processes(log) == []


def test_what_earlier_servers_printed_is_not_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("RuntimeError: of another time\n")
    error = refused(fake_server(log, exit=1).start())
    assert error.message == "the fake server ended with exit code 1 while importing vLLM; it printed nothing"
    assert log.read_text() == "RuntimeError: of another time\n"


def test_a_server_that_is_not_ready_in_time_is_ended_and_its_stage_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    error = refused(fake_server(log, lines=LINES, never=True, family=True, start_timeout=6).start())
    assert error.message.startswith("the fake server was not ready after 6 s, still loading the weights; it printed")
    assert error.fix is not None
    assert error.fix.startswith("raise inference.backend.start_timeout; all of its output is in ")
    assert nothing_left(log)


def test_a_program_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    server = Server(
        lambda port, scratch: Command(("/no/such/python",), {}), name="the fake server", log=tmp_path / "log"
    )
    assert "/no/such/python could not be started: No such file" in refused(server.start()).message


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refused(fake_server(tmp_path / "file" / "log").start()).message


def test_a_port_that_is_taken_is_an_error_where_it_was_asked_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refused(fake_server(tmp_path / "log", port=port).start())
    assert error.message == f"the fake server cannot listen on port {port}: it is taken"
    assert error.fix == "set inference.backend.port to another, or to 0 for any that is free"


def test_a_port_that_is_asked_for_is_used_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    for _ in range(2):
        server = fake_server(tmp_path / "log", port=port)
        run(server.start())
        assert server.url == f"http://127.0.0.1:{port}"
        run(server.stop())


@contextmanager
def another_server(**answers: Any) -> Iterator[int]:
    """The port of somebody else's server, which answers as vLLM does, but for ``answers``."""

    class Theirs(Handler):
        def well(self) -> dict[str, Any]:
            return {"/health": [200, {}], "/v1/models": [200, {"data": [{"id": "policy-theirs"}]}], **answers}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Theirs)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(DEADLINE_S)


def ports(monkeypatch: pytest.MonkeyPatch, *first: int) -> None:
    """Have these tried before any that are free."""
    remaining = list(first)
    monkeypatch.setattr(server_module, "free_port", lambda address: remaining.pop(0) if remaining else free_port())


def test_another_port_is_tried_where_ours_is_taken_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports(monkeypatch, port)
        monkeypatch.setattr(server_module, "_ANSWER_S", 0.2)
        server = fake_server(tmp_path / "log")
        run(server.start())
    assert "Address already in use" in (tmp_path / "log").read_text()
    assert server.url != f"http://127.0.0.1:{port}"
    assert server.alive
    server.kill()


@pytest.mark.parametrize(
    "answers", [{}, {"/v1/models": [404, {}]}, {"/v1/models": [200, "no models"]}], ids=["vLLM", "no vLLM", "nonsense"]
)
def test_somebody_elses_server_is_not_taken_for_ours(tmp_path: Path, answers: dict[str, Any]) -> None:
    """Two may be told the same port, and be well before either listens."""
    with another_server(**answers) as port:
        server = fake_server(tmp_path / "log", never=True)
        server._port = port
        with pytest.raises(BackendError, match=f"port {port} is taken: another server answers there"):
            run(server._start())
        assert nothing_left(tmp_path / "log")


def test_an_asked_port_that_is_taken_meanwhile_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "is_free", lambda port, address: True)
    with another_server() as port:
        error = refused(fake_server(tmp_path / "log", port=port, never=True).start())
    assert error.message == f"the fake server cannot listen on port {port}: it is taken"


def test_words_of_another_port_are_not_about_ours(tmp_path: Path) -> None:
    """Such as the one that the workers of a model on several GPUs talk over."""
    line = "RuntimeError: The server socket has failed to listen: [Errno 98] Address already in use (port 29500)"
    error = refused(fake_server(tmp_path / "log", lines=[line], exit=1).start())
    assert error.message.startswith(f"the fake server ended with exit code 1 while importing vLLM: {line}")


def all_there(log: Path) -> None:
    """Wait for a server with its whole family."""
    deadline = time.monotonic() + DEADLINE_S
    while len(processes(log)) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def interrupted() -> None:
        starting = asyncio.create_task(fake_server(log, never=True, family=True).start())
        await asyncio.to_thread(all_there, log)
        starting.cancel()
        await starting

    with pytest.raises(asyncio.CancelledError):
        run(interrupted())
    assert processes(log) == []


def test_a_server_can_be_started_again(tmp_path: Path) -> None:
    server = fake_server(tmp_path / "log")
    for _ in range(2):
        run(server.start())
        assert server.alive
        run(server.stop())
        assert not server.alive
