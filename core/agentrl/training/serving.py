"""The serving side of a run: an inference backend, the gateway before it, and the dispatcher that uses both."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agentrl.agents.watchdog import Holder, LoopWatchdog
from agentrl.config.models import Config
from agentrl.costs.contract import UNMETERED, Meter
from agentrl.errors import BackendError
from agentrl.gateway import EngineCompleter, Gateway, RelayCompleter
from agentrl.gateway.address import Address
from agentrl.gateway.completer import generate
from agentrl.gateway.contract import Completer
from agentrl.gateway.gateway import registered_dialects
from agentrl.hosting.contract import Hosts
from agentrl.inference.contract import (
    Backend,
    Capabilities,
    ChatBackend,
    ChatCapabilities,
    EngineLoad,
    LoadReporting,
)
from agentrl.inference.model_folder import vocabulary_of
from agentrl.machine import allow_open_files
from agentrl.rewards.scoring import REWARD, call_group_reward, call_reward
from agentrl.rollout.admission import Admission
from agentrl.rollout.contract import AgentRunner, Episode, Executor, ExecutorContext
from agentrl.rollout.dispatcher import SMALLEST_WINDOW, Dispatcher, FailureBudget
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.training.backends import build_chat_backend, stop, untrainable, warned
from agentrl.training.deadlines import within
from agentrl.training.parts import EpisodeParts, Parts, check_sampling

__all__ = [
    "BackendBlocked",
    "EndpointServing",
    "EngineServing",
    "Serving",
    "frozen_heap",
    "reported_load",
    "running_agent",
    "serve",
    "serve_endpoint",
    "started",
    "started_endpoint",
]

_ENDPOINT_GRACE_S = 5.0
"""Seconds that an endpoint's own deadline comes earlier: its backend can say which endpoint was asked what."""

_YOUNG = 20_000
"""New objects after which those among them that nobody holds are collected. Python's own 700 are a call's or two."""
_FILES = 512
"""Open files of a run beside the connections of its agents."""

_FIX = "have the backend's generate await instead of blocking, or use another inference.backend"


class BackendBlocked(BackendError):
    """Raised inside an inference backend that blocked the event loop for longer than an episode may take."""

    def __init__(self) -> None:
        super().__init__("the inference backend blocked the event loop past the episode's deadline", fix=_FIX)


_OTHERS = {
    call_reward.__code__: REWARD,
    call_group_reward.__code__: REWARD,
    generate.__code__: Holder("the inference backend", BackendBlocked, _FIX),
}
"""Code beside the agent's that may block the event loop, by the function that runs it."""


@dataclass(frozen=True, slots=True)
class EngineServing:
    """The running backend of a run."""

    backend: Backend
    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class Serving(EngineServing):
    """…with a gateway in front, and an agent that runs against it."""

    gateway: Gateway
    dispatcher: Dispatcher


@contextlib.asynccontextmanager
async def serve(
    parts: Parts,
    backend: Backend,
    *,
    finished: Callable[[Episode], Awaitable[None]],
    warn: Callable[[str], None],
    trains: bool,
    logs: Path | None = None,
    unstopped: Callable[[Exception], None] | None = None,
    meter: Meter = UNMETERED,
    hosts: Hosts | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> AsyncIterator[Serving]:
    """Start ``backend``, which ``build_backend`` made, the gateway and the agent; stop them at the end of the block.

    ``finished`` is awaited for every finished episode. ``logs`` is the folder for what processes of agents print;
    ``None`` keeps nothing of it. ``warn`` is called with each warning, and ``unstopped`` with the error that stopping
    the backend raised, by default as a warning. ``trains`` says whether the backend has to take new weights, and
    ``meter`` is told of every request to it. ``hosts`` are those of the scheduler, which may run agents on other
    machines, and ``say`` is told where these reach the gateway. Raises ``ConfigError`` where the backend cannot train,
    and where the config wants to sample as it cannot.
    """
    config = parts.config
    async with contextlib.AsyncExitStack() as stack:
        capabilities = await stack.enter_async_context(started(config, backend, warn, unstopped))
        if trains and not capabilities.trains:
            raise untrainable(config)
        check_sampling(config, capabilities, trains=trains)
        vocabulary = vocabulary_of(parts.model_folder)
        completer = EngineCompleter(backend, capabilities, parts.renderer, vocabulary=vocabulary, meter=meter)
        gateway = _gateway(parts, completer, warn, hosts)
        admission = Admission(
            gateway.traffic, capabilities.max_concurrency, config.rollout.max_waiting, reported_load(backend)
        )
        rollout = _rolling_out(
            parts, gateway, finished=finished, warn=warn, logs=logs, hosts=hosts, say=say, admission=admission
        )
        yield Serving(backend, capabilities, gateway, await stack.enter_async_context(rollout))


@contextlib.asynccontextmanager
async def started(
    config: Config,
    backend: Backend,
    warn: Callable[[str], None],
    unstopped: Callable[[Exception], None] | None = None,
) -> AsyncIterator[Capabilities]:
    """Start an engine and yield what it can do; stop it at the end of the block. Arguments are as of ``serve``."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(stop, backend, unstopped or warned(warn), warn)
        capabilities = await within(config.inference.timeout, "the inference engine to start", backend.start())
        for note in capabilities.notes:
            warn(note)
        yield capabilities


@contextlib.asynccontextmanager
async def started_endpoint(
    config: Config, backend: ChatBackend, warn: Callable[[str], None]
) -> AsyncIterator[ChatCapabilities]:
    """As ``started``, for an endpoint."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(stop, backend, warned(warn), warn)
        # The backend's own deadlines come first: it can say which endpoint was asked what.
        yield await within(config.inference.timeout + _ENDPOINT_GRACE_S, "the endpoint to answer", backend.start())


@dataclass(frozen=True, slots=True)
class EndpointServing:
    """The running parts of an evaluation of an endpoint."""

    dispatcher: Dispatcher
    greedy: bool
    """Whether the model takes temperature 0."""


@contextlib.asynccontextmanager
async def serve_endpoint(
    parts: EpisodeParts,
    *,
    finished: Callable[[Episode], Awaitable[None]],
    warn: Callable[[str], None],
    logs: Path | None = None,
    meter: Meter = UNMETERED,
    hosts: Hosts | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> AsyncIterator[EndpointServing]:
    """Start the chat backend, the gateway and the agent; arguments and errors as in ``serve``."""
    backend = build_chat_backend(parts, warn, meter)
    async with contextlib.AsyncExitStack() as stack:
        capabilities = await stack.enter_async_context(started_endpoint(parts.config, backend, warn))
        completer = RelayCompleter(backend)
        gateway = _gateway(parts, completer, warn, hosts)
        rollout = _rolling_out(parts, gateway, finished=finished, warn=warn, logs=logs, hosts=hosts, say=say)
        yield EndpointServing(await stack.enter_async_context(rollout), capabilities.greedy)


def _gateway(parts: EpisodeParts, completer: Completer, warn: Callable[[str], None], hosts: Hosts | None) -> Gateway:
    return Gateway(
        completer,
        registered_dialects(parts.plugins, warn),
        normalisers=parts.normalisers,
        address=Address.of(parts.config.gateway, hosts),
    )


def _told(gateway: Gateway, hosts: Hosts | None) -> str | None:
    """Where agents on other machines reach the gateway, in words; ``None`` where it is for this machine alone."""
    address = gateway.address
    if address.is_loopback and not (hosts is not None and hosts.elsewhere):
        return None
    if address.is_loopback:
        return (
            f"the gateway listens at {gateway.url}, where no agent on another machine reaches it (gateway.host says "
            "where it listens)"
        )
    plain = "; what agents send is not encrypted (gateway.certificate)" if gateway.url.startswith("http:") else ""
    return f"agents on other machines reach the gateway at {gateway.url}, each call with its session's key{plain}"


def _allow_files(config: Config, warn: Callable[[str], None]) -> None:
    """Let this process have a connection open for each episode, also beside an evaluation; ``warn`` where it cannot."""
    wanted = 2 * config.rollout.concurrency + _FILES
    if (allowed := allow_open_files(wanted)) < wanted:
        warn(
            f"this process may have {allowed} files open, and with rollout.concurrency={config.rollout.concurrency} it "
            f"may need {wanted} (raise the hard limit, `ulimit -Hn`, or lower rollout.concurrency)"
        )


@contextlib.asynccontextmanager
async def _rolling_out(
    parts: EpisodeParts,
    gateway: Gateway,
    *,
    finished: Callable[[Episode], Awaitable[None]],
    warn: Callable[[str], None],
    logs: Path | None,
    hosts: Hosts | None,
    say: Callable[[str], None],
    admission: Admission | None = None,
) -> AsyncIterator[Dispatcher]:
    """Start the gateway and the agent, and yield the dispatcher of their episodes; arguments as of ``serve``."""
    _allow_files(parts.config, warn)
    gateway.start()
    try:
        if (told := _told(gateway, hosts)) is not None:
            say(told)
        async with running_agent(parts.executor, parts.config, gateway, logs, warn, hosts) as runner:
            with frozen_heap():
                yield _dispatcher(parts, runner, gateway, finished, admission)
    finally:
        gateway.stop()


@contextlib.asynccontextmanager
async def running_agent(
    executor: Executor,
    config: Config,
    gateway: Gateway,
    logs: Path | None,
    warn: Callable[[str], None],
    hosts: Hosts | None = None,
) -> AsyncIterator[AgentRunner]:
    """Have ``executor`` run its agent against ``gateway``, as ``config`` says, and yield what runs its episodes.

    The event loop is watched meanwhile: rewards run on it wherever the agent does, and so does a backend that answers
    in this process. ``logs`` is the folder for what processes of agents print; ``None`` keeps nothing of it.
    ``hosts`` are those of the scheduler.
    """
    rollout = config.rollout
    context = ExecutorContext(
        concurrency=rollout.concurrency,
        max_workers=rollout.max_workers,
        episodes_per_worker=rollout.episodes_per_worker,
        logs=logs,
        open_worker_endpoint=gateway.open_worker_endpoint,
        warn=warn,
        hosts=hosts,
    )
    agent = config.agent.name if executor.runs_on_event_loop else None
    async with (
        LoopWatchdog(agent, warn, deadline=rollout.episode_timeout, others=_OTHERS),
        executor.running(context) as runner,
    ):
        yield runner


def _dispatcher(
    parts: EpisodeParts,
    runner: AgentRunner,
    gateway: Gateway,
    finished: Callable[[Episode], Awaitable[None]],
    admission: Admission | None,
) -> Dispatcher:
    config: Config = parts.config
    episodes = EpisodeRunner(
        agent=runner,
        open_session=gateway.open_session,
        score=parts.score,
        timeout=config.rollout.episode_timeout,
        max_attempts=config.rollout.max_attempts,
        agent_name=config.agent.name,
        on_overflow=config.rollout.on_overflow.reward,
        longest=config.training.pass_tokens,
        score_group=parts.score.of_group if parts.score is not None and parts.score.compares else None,
    )
    step = config.rollout.tasks_per_step * config.rollout.group_size
    return Dispatcher(
        runner=episodes,
        concurrency=config.rollout.concurrency,
        budget=FailureBudget(config.rollout.failure_budget, max(SMALLEST_WINDOW, step)),
        finished=finished,
        admission=admission,
    )


def reported_load(backend: Backend) -> Callable[[], EngineLoad | None]:
    """What tells how busy ``backend`` is, as far as it says."""
    return backend.load if isinstance(backend, LoadReporting) else lambda: None


@contextlib.contextmanager
def frozen_heap() -> Iterator[None]:
    """Keep the objects that exist now out of garbage collections, and collect more rarely.

    Those are the libraries', half a million that live as long as the process. Traversing them stops every thread for
    a tenth of a second and more, every few training steps, and frees nothing. Of objects that come later, those of
    calls that are under way outlive a collection where there are many at once, and are traversed again and again.
    """
    youngest, *older = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(max(youngest, _YOUNG), *older)
    try:
        yield
    finally:
        gc.set_threshold(youngest, *older)
        gc.unfreeze()
