"""A model served to programs elsewhere: sessions over HTTP, whose episodes are kept in a run folder."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from agentrl.config.models import Config
from agentrl.costs.meter import CostMeter
from agentrl.errors import AgentRLError, about
from agentrl.gateway import EngineCompleter, Gateway, RelayCompleter
from agentrl.gateway.contract import Completer, SessionSettings
from agentrl.gateway.gateway import registered_dialects
from agentrl.gateway.normalise import Normalisers
from agentrl.gateway.queueing import QueueLimit
from agentrl.gateway.service import SessionService
from agentrl.inference.contract import EngineLoad
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
from agentrl.training.serving import frozen_heap, reported_load, started, started_endpoint
from agentrl.training.sessions import (
    Ready,
    ServiceOptions,
    check_address,
    expiring,
    served,
    service_url,
    session_url,
)

__all__ = ["AGENT", "Ready", "ServiceOptions", "serve_sessions"]

AGENT = "serve"
"""What the agent of a service's run is called, since nobody here knows the agents: it begins the run's name too."""

_SAYS_S = 5.0
"""Fewest seconds between two lines that count the episodes."""


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
    config, options = config.naming("agent", AGENT), options.encrypted(config.gateway)
    with config.naming_sources():
        check_address(options)
        plugins.load()
        for broken in plugins.broken:
            reporter.warning(f"a plugin takes no part in this run: {broken}")
        plugins.hook.agentrl_configure(config=config)
        parts = _resolved(config, plugins)
    with _recording(config, plugins, reporter) as recorder:
        run_to_end(lambda: _Service(parts, options, recorder).run(ready, interrupts), interrupts)
    return recorder.summary()


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
    meter: CostMeter
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
            cost=self.meter.run().to_json(self.meter.currency),
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
            recorder = _Recorder(folder, hooks, told, store, CostMeter(config.prices))
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
        async with self._completer() as (completer, running, reported, version):
            gateway = Gateway(
                QueueLimit(completer, running=running, waiting=options.waiting, reported=reported),
                registered_dialects(self.parts.plugins, told.warning),
                normalisers=self.parts.normalisers,
                body_limit=options.body_limit,
                address=options.address,
                connections=options.connections,
            )
            admin_key = options.admin_key or secrets.token_urlsafe(32)
            settings = _settings(config, version)
            service = SessionService(
                gateway.open_session,
                lambda: settings,
                admin_key=admin_key,
                finished=partial(self.recorder.episode, asyncio.get_running_loop()),
                recall=self.recorder.recall,
                base_url=partial(session_url, options, gateway),
                limits=options.sessions,
            )
            async with served(gateway, service):
                made = None if options.admin_key else admin_key
                url = service_url(options, gateway)
                ready(Ready(url, config.model.name, self.recorder.folder.path, made))
                told.activity_started("serving")
                with frozen_heap():
                    await expiring(service, options.sessions, told.warning, self._tell)

    def _tell(self) -> None:
        self.recorder.tell()
        self.recorder.hooks.check()

    @contextlib.asynccontextmanager
    async def _completer(self) -> AsyncIterator[tuple[Completer, int, Callable[[], EngineLoad | None], int]]:
        """What answers the calls, how many it answers at once and says of itself, and the version of its weights."""
        parts, told = self.parts, self.recorder.reporter
        if not isinstance(parts, _EngineParts):
            endpoint = build_chat_backend(parts, told.warning, self.recorder.meter)
            async with started_endpoint(parts.config, endpoint, told.warning):
                yield RelayCompleter(endpoint), parts.config.rollout.concurrency, lambda: None, 0
            return
        version = read_checkpoint(parts.model_folder).version
        backend = build_backend(parts, version, logs=self.recorder.folder.logs, say=told.note, trains=False)
        async with started(parts.config, backend, told.warning) as capabilities:
            check_sampling(parts.config, capabilities, trains=True)
            vocabulary = vocabulary_of(parts.model_folder)
            completer = EngineCompleter(
                backend, capabilities, parts.renderer, vocabulary=vocabulary, meter=self.recorder.meter
            )
            yield completer, capabilities.max_concurrency, reported_load(backend), version


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
