"""The serving side of a run: an inference backend, the gateway before it, and the rollout that uses both."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from agentrl.config.models import Config
from agentrl.errors import BackendError
from agentrl.gateway import EngineCompleter, Gateway
from agentrl.gateway.gateway import registered_dialects
from agentrl.inference.contract import Backend, BackendContext, Capabilities, ChatBackend
from agentrl.inference.model_folder import vocabulary_of
from agentrl.rollout.contract import AgentRunner, Episode
from agentrl.rollout.dispatcher import Dispatcher
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.rollout.failures import SMALLEST_WINDOW, FailureBudget
from agentrl.training.agent import Place
from agentrl.training.backends import check_is_engine, untrainable
from agentrl.training.heap import settled_heap
from agentrl.training.parts import EpisodeParts, Parts, check_sampling
from agentrl.training.watching import stop_watchdog

__all__ = ["Serving", "build_backend", "rolling_out", "serve", "stop", "warned", "within"]

_STOP_S = 60.0
"""How long a backend may take to stop."""
_WORD_S = 5.0
"""After how long one that is about to is worth a word."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What is running while a run runs."""

    backend: Backend
    capabilities: Capabilities
    gateway: Gateway
    dispatcher: Dispatcher


@contextlib.asynccontextmanager
async def serve(
    parts: Parts,
    version: int,
    *,
    finished: Callable[[Episode], Awaitable[None]],
    warn: Callable[[str], None],
    say: Callable[[str], None],
    trains: bool,
    logs: Path | None = None,
    unstopped: Callable[[Exception], None] | None = None,
) -> AsyncIterator[Serving]:
    """Start the backend on the model folder's weights, which are of ``version``, the gateway and the agent.

    ``logs`` is the folder for what processes of agents and of the backend print; ``None`` keeps nothing of it. ``say``
    is told what a long start waits for, and ``unstopped`` what the backend fails to stop with, which by default is a
    warning. Raises ``ConfigError`` where training is wanted of a backend that cannot take
    new weights, and where the config wants to sample as the backend cannot.
    """
    config = parts.config
    backend = build_backend(parts, version, logs=logs, say=say)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(stop, backend, unstopped or warned(warn), warn)
        async with within(config.inference.timeout, "the inference engine to start"):
            capabilities = await backend.start()
        if trains and not capabilities.trains:
            raise untrainable(config)
        check_sampling(config, capabilities, trains=trains)
        completer = EngineCompleter(backend, capabilities, parts.renderer, vocabulary=vocabulary_of(parts.model_folder))
        gateway = Gateway(completer, registered_dialects(parts.plugins, warn))
        rollout = rolling_out(parts, gateway, finished=finished, warn=warn, logs=logs)
        yield Serving(backend, capabilities, gateway, await stack.enter_async_context(rollout))


@contextlib.asynccontextmanager
async def rolling_out(
    parts: EpisodeParts,
    gateway: Gateway,
    *,
    finished: Callable[[Episode], Awaitable[None]],
    warn: Callable[[str], None],
    logs: Path | None,
) -> AsyncIterator[Dispatcher]:
    """Start the gateway and the agent, for episodes that ``finished`` is told of; the rest as in ``serve``."""
    gateway.start()
    try:
        async with parts.agent.running(Place(gateway, parts.config, logs, warn)) as agent:
            with settled_heap():
                yield _dispatcher(parts, agent, gateway, finished)
    finally:
        gateway.stop()


@contextlib.asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """A deadline for the engine. Raises ``BackendError`` that names what was waited for."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise BackendError(f"waited {seconds:g} s for {what}", fix="raise inference.timeout") from error


async def stop(
    backend: Backend | ChatBackend, unstopped: Callable[[Exception], None], warn: Callable[[str], None]
) -> None:
    """Stop ``backend``. ``unstopped`` is told of one that fails to, or does not come to an end and is left as it is;
    ``warn`` of one that takes its time."""
    async with stop_watchdog(_stopped.__code__, warn, deadline=_STOP_S):
        stopping = asyncio.ensure_future(_stopped(backend))
        done, _ = await asyncio.wait({stopping}, timeout=min(_WORD_S, _STOP_S))
        if not done and _STOP_S > _WORD_S:
            warn(f"the inference backend has not stopped after {_WORD_S:g} s; after {_STOP_S:g} s it is left as it is")
            done, _ = await asyncio.wait({stopping}, timeout=_STOP_S - _WORD_S)
    if not done:
        stopping.cancel()
        unstopped(BackendError(f"the inference backend did not stop within {_STOP_S:g} s", fix="mend its stop"))
    elif isinstance(error := stopping.exception(), Exception):
        unstopped(error)


async def _stopped(backend: Backend | ChatBackend) -> None:
    await backend.stop()


def warned(warn: Callable[[str], None]) -> Callable[[Exception], None]:
    """For ``stop``: all else is done by then, so that what it fails with is worth a warning."""
    return lambda error: warn(f"the inference backend failed to stop: {type(error).__name__}: {error}")


def build_backend(
    parts: Parts, version: int, *, logs: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> Backend:
    """The backend that the config names, not started; the model folder's weights are of ``version``.

    Raises ``ConfigError`` or ``PluginError`` for a name or key that stands for nothing.
    """
    part = parts.config.inference.backend
    context = BackendContext(
        model_folder=parts.model_folder,
        version=version,
        seed=parts.config.seed,
        max_concurrency=parts.config.rollout.concurrency,
        options=part.options,
        logs=logs,
        say=say,
        timeout=parts.config.inference.timeout,
    )
    backend: Backend = parts.plugins.build("backends", part, context=context)
    check_is_engine(parts.config, backend)
    return backend


def _dispatcher(
    parts: EpisodeParts, agent: AgentRunner, gateway: Gateway, finished: Callable[[Episode], Awaitable[None]]
) -> Dispatcher:
    config: Config = parts.config
    runner = EpisodeRunner(
        agent=agent,
        open_session=gateway.open_session,
        score=parts.score,
        timeout=config.rollout.episode_timeout,
        max_attempts=config.rollout.max_attempts,
    )
    step = config.rollout.tasks_per_step * config.rollout.group_size
    return Dispatcher(
        runner=runner,
        concurrency=config.rollout.concurrency,
        budget=FailureBudget(config.rollout.failure_budget, max(SMALLEST_WINDOW, step)),
        finished=finished,
    )
