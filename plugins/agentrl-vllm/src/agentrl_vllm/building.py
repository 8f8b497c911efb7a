"""From settings to replicas, not started."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from agentrl.inference.contract import BackendContext
from agentrl_vllm.replica import Replica, Serving
from agentrl_vllm.server.attached import AttachedServer
from agentrl_vllm.server.command import ServingCommand
from agentrl_vllm.server.installation import find_python, inspect_python
from agentrl_vllm.server.server import Server
from agentrl_vllm.server.variables import server_environment
from agentrl_vllm.settings import VllmSettings

__all__ = ["build_replicas"]

Make = Callable[[Path], Serving]


async def build_replicas(
    context: BackendContext,
    settings: VllmSettings,
    logs: Path,
    newest: Callable[[], tuple[Path, int]],
    admit: Callable[[Replica], Awaitable[None]],
) -> list[Replica]:
    """The replicas that ``settings`` ask for; servers of ours print to files in ``logs``.

    Raises ``PluginError`` where there is no vLLM to start, and ``ConfigError`` for variables that are not set.
    """
    makes = [_attaching(context, url) for url in settings.urls] or await _starting(context, settings, logs)
    return [Replica(number, make, newest, admit, say=context.say) for number, make in enumerate(makes)]


def _attaching(context: BackendContext, url: str) -> Make:
    server = AttachedServer(url, context.model_folder, say=context.say)
    return lambda folder: server


async def _starting(context: BackendContext, settings: VllmSettings, logs: Path) -> list[Make]:
    python = find_python(settings.python)
    environ = server_environment(settings.env, os.environ, python)
    installation = await inspect_python(python, environ)

    def making(number: int) -> Make:
        command = ServingCommand(installation, settings, environ, number, sequences=context.max_concurrency)
        return lambda folder: Server(
            lambda port, scratch: command.build(folder, port, scratch),
            name=f"vLLM server {number}",
            log=logs / f"vllm-{number}.log",
            port=settings.port and settings.port + number,
            start_timeout=settings.start_timeout,
            say=context.say,
        )

    return [making(number) for number in range(settings.replicas)]
