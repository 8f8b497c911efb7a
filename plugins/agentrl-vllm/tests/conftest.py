"""The suites and fixtures that core has for plugins, and one server for all tests that do it no harm."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real import KEYS, START_S

from agentrl_vllm.server.command import ServingCommand
from agentrl_vllm.server.installation import find_python, inspect_python
from agentrl_vllm.server.server import Server
from agentrl_vllm.server.variables import server_environment
from agentrl_vllm.settings import VllmSettings

pytest_plugins = ["agentrl.testing"]

SEQUENCES = 64


@pytest.fixture(scope="session")
def standing(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that runs already, started as agentrl starts its own; runs attach to it one after the other."""
    settings = VllmSettings.model_validate(KEYS)
    server = Server(
        _command(settings, tiny_model), name="the standing server", log=tmp_path_factory.mktemp("standing") / "log"
    )

    async def started() -> None:
        async with asyncio.timeout(START_S):
            await server.start()

    asyncio.run(started())
    yield server
    server.kill()


def _command(settings: VllmSettings, model: Path) -> Any:
    python = find_python(settings.python)
    environ = server_environment(settings.env, os.environ, python)
    installation = asyncio.run(inspect_python(python, environ))
    command = ServingCommand(installation, settings, environ, replica=0, sequences=SEQUENCES)
    return lambda port, scratch: command.build(model, port, scratch)
