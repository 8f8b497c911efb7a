"""A model served to programs elsewhere: sessions over HTTP, whose episodes are kept in a run folder."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from agentrl.config.models import Config
from agentrl.errors import AgentRLError, ConfigError, about, shown
from agentrl.gateway import EngineCompleter, Gateway, RelayCompleter, Session
from agentrl.gateway.connection import DEFAULT_LIMITS, ConnectionLimits
from agentrl.gateway.contract import Completer, SessionSettings
from agentrl.gateway.gateway import BODY_LIMIT, registered_dialects
from agentrl.gateway.normalise import Normalisers
from agentrl.gateway.queueing import QueueLimit
from agentrl.gateway.service import ServiceLimits, SessionService
from agentrl.inference.model_folder import find_model, vocabulary_of
from agentrl.plugins import Plugins
from agentrl.reporting.contract import Reporter
from agentrl.reporting.hooks import RunHooks
from agentrl.reporting.plain import RunLog
from agentrl.reporting.reporter import Reporters
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.runs.contract import Summary
from agentrl.runs.folder import RunFolder
from agentrl.runs.reader import Run
from agentrl.runs.store import EpisodeStore
from agentrl.runs.tally import Tally
from agentrl.tokens.renderer import Renderer
from agentrl.training.backends import build_backend, build_chat_backend, is_chat
from agentrl.training.checkpoints import read_checkpoint
from agentrl.training.interrupts import Interrupts, run_to_end
from agentrl.training.measure import printed
from agentrl.training.parts import ANY_ENGINE, check_override, check_sampling, load_chat
from agentrl.training.serving import frozen_heap, started, started_endpoint

__all__ = ["AGENT", "Ready", "ServiceOptions", "serve_sessions"]

AGENT = "serve"
"""What the agent of a service's run is called, since nobody here knows the agents: it begins the run's name too."""

_SHORTEST_KEY = 16
"""Fewest characters of the admin key where other machines may try keys."""
_SAYS_S = 5.0
"""Fewest seconds between two lines that count the episodes."""
_LOOKS_S = 1.0
"""Most seconds between two looks for sessions that have expired."""


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """Where and to whom a model is served, and the limits."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 is a free one."""
    url: str | None = None
    """Where clients reach the service, if that is not at host and port: behind a proxy, or in a container."""
    admin_key: str | None = field(default=None, repr=False)
    """``None`` makes one, on the loopback interface only."""
    sessions: ServiceLimits = field(default_factory=ServiceLimits)
    waiting: int = 256
    """Most calls that wait for the model."""
    body_limit: int = BODY_LIMIT
    connections: ConnectionLimits = DEFAULT_LIMITS


@dataclass(frozen=True, slots=True)
class Ready:
    """A service that clients can reach."""

    url: str
    """What the paths of the API follow, such as ``/v1/sessions``."""
    model: str
    folder: Path
    """The run folder."""
    admin_key: str | None = field(default=None, repr=False)
    """The admin key, where one was made; whoever starts the service is told it once."""


def serve_sessions(
    config: Config,
    plugins: Plugins,
    options: ServiceOptions,
    reporter: Reporter,
    ready: Callable[[Ready], None],
    interrupts: Interrupts,
) -> Summary:
    """Serve the model of ``config`` until one of ``interrupts``, and return the summary of the run.

    ``ready`` is called once clients can connect. Raises ``ConfigError`` or ``PluginError`` for what is wrong with the
    settings, and another ``AgentRLError`` for what stopped the service. A run folder stays where a session has ended.
    """
    _check_address(options)
    config = config.naming("agent", AGENT)
    with config.naming_sources():
        plugins.load()
        for broken in plugins.broken:
            reporter.warning(f"a plugin takes no part in this run: {broken}")
        plugins.hook.agentrl_configure(config=config)
        parts = _resolved(config, plugins)
    with _recording(config, plugins, reporter) as recorder:
        run_to_end(lambda: _Service(parts, options, recorder).run(ready, interrupts), interrupts)
    return recorder.summary()


def _check_address(options: ServiceOptions) -> None:
    """Raise ``ConfigError`` where other machines could open sessions without a key that is hard to guess.

    Also for a ``url`` that leads nowhere.
    """
    if options.url is not None:
        given = urlsplit(options.url)
        if given.scheme not in ("http", "https") or not given.hostname or given.query or given.fragment:
            raise ConfigError(
                f"--url={shown(options.url, 80)} is not where clients can reach the service",
                fix="write it like https://example.com/agentrl",
            )
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--host={options.host} is no address: {error.strerror or error}") from error
    if all(ipaddress.ip_address(each[4][0]).is_loopback for each in found):
        return
    if options.admin_key is None:
        raise ConfigError(
            f"--host={options.host} lets other machines in, and nobody has set an admin key",
            fix="set AGENTRL_ADMIN_KEY, or serve on 127.0.0.1",
        )
    if len(options.admin_key) < _SHORTEST_KEY:
        raise ConfigError(
            f"--host={options.host} lets other machines in, and the admin key has {len(options.admin_key)} characters",
            fix=f"take one of at least {_SHORTEST_KEY}: python -c 'import secrets; print(secrets.token_urlsafe())'",
        )


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the names in the config stand for."""

    config: Config
    plugins: Plugins
    normalisers: Normalisers


@dataclass(frozen=True, slots=True)
class _EngineParts(_Parts):
    """…where the model is a folder, and an engine samples it."""

    model_folder: Path
    renderer: Renderer


def _resolved(config: Config, plugins: Plugins) -> _Parts:
    chat = is_chat(config, plugins)
    check_override(config, chat=chat)
    normalisers = Normalisers.build(plugins, config.gateway.normalise)
    if chat:
        return _Parts(config, plugins, normalisers)
    check_sampling(config, ANY_ENGINE, trains=True)
    with about("model.name"):
        folder = find_model(plugins, config.model)
        renderer = load_chat(folder, config.model).renderer
    return _EngineParts(config, plugins, normalisers, folder, renderer)


@dataclass
class _Recorder:
    """Stores the episodes of a service, reports them and sums them up."""

    folder: RunFolder
    hooks: RunHooks
    reporter: Reporters
    store: EpisodeStore
    tally: Tally = field(default_factory=Tally)
    tokens: int = 0
    outcome: str = "completed"
    began: float = field(default_factory=time.monotonic)
    said: tuple[float, int] = (-math.inf, 0)
    """When the episodes were counted last, and how many there were."""

    async def episode(self, loop: asyncio.AbstractEventLoop, episode: Episode) -> None:
        """Store an episode durably, then have it reported by ``loop``. Raises ``RunError`` where it is not stored."""
        await self.store.commit([episode])
        loop.call_soon_threadsafe(self._report, episode)

    def _report(self, episode: Episode) -> None:
        self.tokens += sum(call.completion_tokens for call in episode.calls)
        self.tally.add(episode)
        self.reporter.episode_finished(episode)
        self.hooks.tell("agentrl_episode_finished", episode=episode)

    def tell(self) -> None:
        """Have it shown how many episodes there are, if that is news and was not shown a moment ago."""
        count, failed = self.tally.episodes, self.tally.count("failed")
        if count == self.said[1] or time.monotonic() - self.said[0] < _SAYS_S:
            return
        self.said = (time.monotonic(), count)
        episodes = f"{count:,} episode{'s' if count > 1 else ''}"
        self.reporter.activity_started(f"serving, {episodes}" + (f", {failed:,} failed" if failed else ""))

    def recall(self, key: EpisodeKey) -> Episode:
        """An episode that was stored."""
        return Run(self.folder.path).episode(key)

    def summary(self) -> Summary:
        """What the run folder's ``summary.json`` holds."""
        return Summary(
            outcome=self.outcome,
            episodes=self.tally.episodes,
            tokens=self.tokens,
            seconds=time.monotonic() - self.began,
            **self.tally.counts(),
            reasons=self.tally.reasons(),
        )


@contextlib.contextmanager
def _recording(config: Config, plugins: Plugins, reporter: Reporter) -> Iterator[_Recorder]:
    """Make the run folder, and write its summary at the end. One in which nothing was recorded is removed."""
    folder = RunFolder.create(config)
    recorder: _Recorder | None = None
    try:
        with (
            contextlib.closing(RunLog(folder.logs / "run.log")) as log,
            EpisodeStore(folder.episodes) as store,
        ):
            told = Reporters(reporter, log)
            hooks = RunHooks(plugins, told.warning, config.run.hook_timeout)
            recorder = _Recorder(folder, hooks, told, store)
            for note in store.notes:
                recorder.reporter.note(note)
            try:
                yield recorder
                hooks.settle()
            except Exception as error:
                reason = str(error) if isinstance(error, AgentRLError) else type(error).__name__
                recorder.outcome = f"failed: {reason}"
                raise
            finally:
                hooks.close()
                summary = recorder.summary()
                log.run_finished(summary)
                with contextlib.suppress(AgentRLError) if recorder.outcome != "completed" else contextlib.nullcontext():
                    folder.write_summary(summary)
    finally:
        if (recorder is None or not recorder.tally.episodes) and not printed(folder):
            folder.remove()


@dataclass(frozen=True, slots=True)
class _Service:
    parts: _Parts
    options: ServiceOptions
    recorder: _Recorder

    async def run(self, ready: Callable[[Ready], None], interrupts: Interrupts) -> None:
        """Serve until the task is cancelled by one of ``interrupts``."""
        task = asyncio.current_task()
        assert task is not None
        with interrupts.cancelling(task):
            try:
                await self._serve(ready)
            except asyncio.CancelledError:
                if not interrupts.arrived:
                    raise
                task.uncancel()

    async def _serve(self, ready: Callable[[Ready], None]) -> None:
        told, config, options = self.recorder.reporter, self.parts.config, self.options
        told.activity_started(f"loading {config.model.name}")
        async with self._completer() as (completer, running, version):
            admin_key = options.admin_key or secrets.token_urlsafe(32)
            gateway = Gateway(
                QueueLimit(completer, running=running, waiting=options.waiting),
                registered_dialects(self.parts.plugins, told.warning),
                normalisers=self.parts.normalisers,
                body_limit=options.body_limit,
                address=(options.host, options.port),
                connections=options.connections,
            )
            service = SessionService(
                gateway.open_session,
                _settings(config, version),
                admin_key=admin_key,
                finished=partial(self.recorder.episode, asyncio.get_running_loop()),
                recall=self.recorder.recall,
                base_url=partial(_base_url, options, gateway),
                limits=options.sessions,
            )
            gateway.attach(service)
            gateway.start()
            try:
                url = (options.url or gateway.url).rstrip("/")
                made = None if options.admin_key else admin_key
                ready(Ready(url, config.model.name, self.recorder.folder.path, made))
                told.activity_started("serving")
                with frozen_heap():
                    await self._expire(service)
            finally:
                try:
                    await asyncio.shield(service.stop())
                finally:
                    gateway.stop()
                    await asyncio.sleep(0)  # In which the last episodes are reported.

    async def _expire(self, service: SessionService) -> None:
        """End idle sessions for ever. One whose episode cannot be stored is told of, and tried again."""
        pause = min(_LOOKS_S, self.options.sessions.idle_s / 4)
        while True:
            await asyncio.sleep(pause)
            self.recorder.tell()
            self.recorder.hooks.check()
            try:
                await service.expire()
            except AgentRLError as error:
                self.recorder.reporter.warning(str(error))

    @contextlib.asynccontextmanager
    async def _completer(self) -> AsyncIterator[tuple[Completer, int, int]]:
        """What answers the calls, how many it answers at once, and the version of its weights."""
        parts, told = self.parts, self.recorder.reporter
        if not isinstance(parts, _EngineParts):
            endpoint = build_chat_backend(parts, told.warning)
            async with started_endpoint(parts.config, endpoint, told.warning):
                yield RelayCompleter(endpoint), parts.config.rollout.concurrency, 0
            return
        version = read_checkpoint(parts.model_folder).version
        backend = build_backend(parts, version, logs=self.recorder.folder.logs, say=told.note)
        async with started(parts.config, backend, told.warning) as capabilities:
            check_sampling(parts.config, capabilities, trains=True)
            vocabulary = vocabulary_of(parts.model_folder)
            completer = EngineCompleter(backend, capabilities, parts.renderer, vocabulary=vocabulary)
            yield completer, capabilities.max_concurrency, version


def _settings(config: Config, version: int) -> SessionSettings:
    return SessionSettings(
        training=True,
        model=config.model.name,
        temperature=config.rollout.temperature,
        max_tokens=config.rollout.max_tokens,
        override=config.rollout.override,
        versions=(version, version),
        seed_key=(config.seed, AGENT, version),
    )


def _base_url(options: ServiceOptions, gateway: Gateway, session: Session, host: str) -> str:
    """The base URL of a session: at the service's own URL, or at the host that its opener asked."""
    if options.url is not None:
        return session.base_url.replace(gateway.url, options.url.rstrip("/"), 1)
    return session.base_url.replace(gateway.url, f"http://{host}", 1) if host else session.base_url
