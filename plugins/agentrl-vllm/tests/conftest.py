"""The suites and fixtures that core has for plugins, and one server for all tests that do it no harm."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from real import PYTHON, START_S
from servers import MARK

from agentrl_vllm.command import ServingCommand, server_environment
from agentrl_vllm.installation import Installation, find_python, inspect_python
from agentrl_vllm.server import Server
from agentrl_vllm.settings import VllmSettings

pytest_plugins = ["agentrl.testing"]

# A busy machine is no failure.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

# Ignored where the tests run in the background; what they interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

SEQUENCES = 64


@pytest.fixture(scope="session")
def installation() -> Installation:
    python = find_python(None if PYTHON is None else Path(PYTHON))
    return asyncio.run(inspect_python(python, server_environment((), os.environ, python)))


@pytest.fixture(scope="session")
def real(installation: Installation) -> Callable[..., Server]:
    """Makes a server of a folder, its log and more settings; its processes bear the path of the log."""

    def real(folder: Path, log: Path, **settings: Any) -> Server:
        mine = VllmSettings.model_validate({"env": [f"{MARK}={log}"], **settings})
        ours = {**os.environ, "OPENAI_API_KEY": "sk-secret"}
        environ = server_environment(mine.env, ours, installation.python)
        command = ServingCommand(installation, mine, environ, replica=0, sequences=SEQUENCES)
        return Server(
            lambda port, scratch: command.build(folder, port, scratch),
            name="the server",
            log=log,
            start_timeout=START_S,
            say=lambda text: None,
        )

    return real


@pytest.fixture(scope="session")
def real_server_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real_server") / "log"


@pytest.fixture(scope="session")
def real_server(real: Callable[..., Server], real_server_log: Path, tiny_model: Path) -> Iterator[Server]:
    """A server that runs already, started as agentrl starts its own; runs attach to it one after the other."""
    server = real(tiny_model, real_server_log)

    async def started() -> None:
        async with asyncio.timeout(START_S):
            await server.start()

    asyncio.run(started())
    yield server
    server.kill()
