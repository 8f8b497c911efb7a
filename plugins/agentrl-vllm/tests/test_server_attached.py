"""Attaching to a server that runs already: what it has to be, and what is said of one that is not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers import fake_server, run
from well import GENERATE, TINY, WELL

from agentrl.errors import BackendError, PluginError
from agentrl_vllm.attached import AttachedServer
from agentrl_vllm.process import SupervisedProcess
from agentrl_vllm.server import Server, free_port, is_free


@contextmanager
def running(log: Path, **answers: Any) -> Iterator[str]:
    """The address of a fake server that answers as a good one does, but for ``answers``."""
    server = fake_server(log, answers={**WELL, **answers})
    run(listening(server))
    try:
        yield server.url
    finally:
        server.kill()


async def listening(server: Server) -> None:
    """Have somebody else start it: it does not call its model as one of ours does."""
    server._port = server._asked_port or free_port()
    server._process = SupervisedProcess(server._command, server._log_path)
    while is_free(server._port):  # noqa: ASYNC110  (what is waited for is a process)
        await asyncio.sleep(0.02)


def test_a_server_that_is_all_it_should_be_is_attached_to_and_left_alone(tmp_path: Path) -> None:
    with running(tmp_path / "log") as url:
        server = AttachedServer(url, TINY)
        run(server.start())
        assert (server.model, server.alive) == ("it", True)
        run(server.stop())
        assert not server.alive
        run(AttachedServer(url, TINY).start())


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        (
            {GENERATE: [404, {}]},
            PluginError,
            r"is vLLM 0\.32\.0, which is too old: .*run vLLM 0\.32 or later there",
        ),
        ({GENERATE: [403, {}]}, BackendError, r"scale-out endpoints are disabled \(start it with --enable-scale-out\)"),
        ({GENERATE: [401, {}]}, BackendError, r"asks for an API key \(set inference\.backend\.api_key_env to"),
        ({"/version": [404, {}]}, BackendError, r"is no vLLM server: GET /version gave status 404"),
        ({"/version": [200, ["x"]]}, BackendError, r"is no vLLM server"),
        (
            {"/tokenize": [200, {"tokens": [1, 2]}]},
            BackendError,
            r"serves the wrong model: /models/it, whose",
        ),
        ({"/v1/models": [200, {"data": []}]}, BackendError, r"serves no model"),
    ],
)
def test_one_that_cannot_be_used_is_told_why(
    tmp_path: Path, answers: dict[str, Any], error: type[Exception], message: str
) -> None:
    with running(tmp_path / "log", **answers) as url, pytest.raises(error, match=message):
        run(AttachedServer(url, TINY).start())


def test_one_that_is_not_there_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        url = f"http://127.0.0.1:{found.getsockname()[1]}"
    with pytest.raises(BackendError, match=f"the server at {url} does not answer /version"):
        run(AttachedServer(url, TINY).start())


def test_one_that_was_there_is_waited_for(tmp_path: Path) -> None:
    said: list[str] = []
    with running(tmp_path / "log") as url:
        server = AttachedServer(url, TINY, say=said.append)
        run(server.start())
    again = fake_server(tmp_path / "log", answers=WELL, port=int(url.rpartition(":")[2]))

    async def come_back() -> None:
        waiting = asyncio.create_task(server.start())
        await asyncio.sleep(0)
        await listening(again)
        await waiting

    try:
        run(come_back())
        assert said == [f"waiting for the vLLM server at {url}"]
        assert server.alive
    finally:
        again.kill()


def test_one_that_does_not_come_back_is_given_up(tmp_path: Path) -> None:
    with running(tmp_path / "log") as url:
        server = AttachedServer(url, TINY, return_timeout=0.5)
        run(server.start())
    with pytest.raises(BackendError, match=r"did not come back within 0\.5 s"):
        run(server.start())


def test_a_key_that_is_not_taken_is_told_and_not_shown(tmp_path: Path) -> None:
    with running(tmp_path / "log", **{GENERATE: [401, {}]}) as url, pytest.raises(BackendError) as caught:
        run(AttachedServer(url, TINY, key="sk-secret").start())
    assert "does not take the API key that it is shown" in caught.value.message
    assert "sk-secret" not in str(caught.value)
