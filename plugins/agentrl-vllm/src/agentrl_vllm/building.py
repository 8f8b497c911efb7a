"""From settings to replicas, not started."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from agentrl.errors import ConfigError
from agentrl.inference.contract import BackendContext
from agentrl_vllm.client import Client
from agentrl_vllm.replica import Replica
from agentrl_vllm.server.attached import AttachedServer
from agentrl_vllm.server.command import ServingCommand
from agentrl_vllm.server.installation import find_python, inspect_python
from agentrl_vllm.server.server import Server
from agentrl_vllm.server.variables import server_environment
from agentrl_vllm.serving import Serving
from agentrl_vllm.settings import VllmSettings

__all__ = ["build_replicas", "key_of", "start_timeout"]

Make = Callable[[Path], Serving]

_SHARE = 0.95
"""Of the time for all that a start is, so that what took too long is named."""


def start_timeout(context: BackendContext, settings: VllmSettings) -> float:
    """Seconds for a replica to get ready. Raises ``ConfigError`` where a start would be cancelled before."""
    if context.timeout is None or settings.start_timeout < context.timeout:
        return settings.start_timeout
    if "start_timeout" in settings.model_fields_set:
        raise ConfigError(
            f"inference.backend.start_timeout={settings.start_timeout:g} is not less than "
            f"inference.timeout={context.timeout:g}, which bounds all of the start",
            fix="raise inference.timeout, or lower inference.backend.start_timeout",
        )
    return _SHARE * context.timeout


def key_of(settings: VllmSettings, environ: Mapping[str, str]) -> str | None:
    """What the servers of ``urls`` are shown. Raises ``ConfigError`` where ``environ`` lacks it."""
    name = settings.api_key_env
    if name is not None and not environ.get(name, "").strip():
        raise ConfigError(
            f"the environment variable {name}, which inference.backend.api_key_env names, is not set",
            fix="set it to the key of the servers in inference.backend.urls, or leave it out where they need none",
        )
    return None if name is None else environ[name].strip()


async def build_replicas(
    context: BackendContext,
    settings: VllmSettings,
    client: Client,
    logs: Path,
    shared: Path,
    newest: Callable[[], tuple[Path, int]],
    admit: Callable[[Replica], Awaitable[None]],
) -> list[Replica]:
    """The replicas that ``settings`` ask for; servers of ours print to files in ``logs``.

    ``shared`` is where weights are handed over. Raises ``PluginError`` where there is no vLLM to start, and
    ``ConfigError`` for what cannot be: variables that are not set, times that do not fit, GPUs that are shared.
    """
    seconds = start_timeout(context, settings)
    if settings.urls:
        makes = [_attaching(context, url, key_of(settings, os.environ), seconds) for url in settings.urls]
    else:
        makes = await _starting(context, settings, logs, shared, seconds)
    return [
        Replica(number, make, newest, admit, client=client, start_timeout=seconds, say=context.say)
        for number, make in enumerate(makes)
    ]


def _attaching(context: BackendContext, url: str, key: str | None, seconds: float) -> Make:
    server = AttachedServer(url, context.model_folder, key=key, return_timeout=seconds, say=context.say)
    return lambda folder: server


async def _starting(
    context: BackendContext, settings: VllmSettings, logs: Path, shared: Path, seconds: float
) -> list[Make]:
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
            shared=shared,
            start_timeout=seconds,
            say=context.say,
        )

    return [making(number) for number in range(settings.replicas)]
