"""Training on sessions that people open: a run of ``agent=online`` serves them, and learns from those with a reward.

A step, seen from here::

    people open sessions       under the weights that are served, and go on with them while the weights change
    sessions end               with a reward, rejected, failed, or expired because nobody came back
    groups become whole        those of one name together, and a session without a group by itself
    a step is due              at ``rollout.tasks_per_step * rollout.group_size`` sessions with a reward
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from agentrl.algorithms.advantages import BatchBaseline
from agentrl.algorithms.contract import Algorithm, StepAdvantage, TokenAdvantage
from agentrl.config.checks import check_trainable
from agentrl.config.models import ONLINE, Config
from agentrl.errors import AgentRLError, ConfigError
from agentrl.gateway import EngineCompleter, Gateway
from agentrl.gateway.contract import SessionSettings
from agentrl.gateway.gateway import registered_dialects
from agentrl.gateway.normalise import Normalisers
from agentrl.gateway.queueing import QueueLimit
from agentrl.gateway.service import SessionService
from agentrl.inference.contract import Backend
from agentrl.inference.model_folder import find_model, vocabulary_of
from agentrl.plugins import Plugins
from agentrl.rollout.buffer import Taken
from agentrl.rollout.contract import Episode, EpisodeKey, Group
from agentrl.rollout.sessions import SessionBuffer
from agentrl.runs.reader import Run
from agentrl.tokens.renderer import Renderer
from agentrl.training.backends import check_takes_weights, untrainable
from agentrl.training.checkpoints import Conversing
from agentrl.training.choices import with_learning_rate
from agentrl.training.parts import ANY_ENGINE, check_override, check_sampling, load_chat
from agentrl.training.recorder import RunRecorder
from agentrl.training.replay import OpenGroups
from agentrl.training.requests import LARGEST_VERSION
from agentrl.training.serving import EngineServing, frozen_heap, reported_load, started
from agentrl.training.sessions import (
    Ready,
    ServiceOptions,
    check_address,
    expiring,
    served,
    service_url,
    session_url,
)

__all__ = ["OnlineParts", "SessionSupply", "not_resumed", "resolve_online", "serving_engine", "with_batch_baseline"]


@dataclass(frozen=True, slots=True)
class OnlineParts:
    """What a run needs that no agent runs in."""

    config: Config
    plugins: Plugins
    normalisers: Normalisers
    model_folder: Path
    renderer: Renderer
    conversing: Conversing
    options: ServiceOptions
    """Where and to whom sessions are served."""


def resolve_online(config: Config, plugins: Plugins) -> OnlineParts:
    """Resolve the names of ``config`` and start nothing. Raises ``ConfigError`` or ``PluginError`` for what is wrong.

    That is also an address which lets other machines in without an admin key, and ``rollout.on_stale=wait``.
    """
    check_trainable(config)
    check_takes_weights(config, plugins)
    check_override(config)
    check_sampling(config, ANY_ENGINE, trains=True)
    options = ServiceOptions.of(config.serve).encrypted(config.gateway)
    check_address(options)
    folder = find_model(plugins, config.model)
    chat = load_chat(folder, config.model)
    normalisers = Normalisers.build(plugins, config.gateway.normalise)
    config = with_learning_rate(config, folder)
    return OnlineParts(config, plugins, normalisers, folder, chat.renderer, chat.kept, options)


def not_resumed(run: Path) -> ConfigError:
    """The error for going on with a run of sessions: those that were open when it ended are closed."""
    return ConfigError(
        f"the run {run} took its episodes from sessions, and cannot be resumed: nobody can repeat what people did",
        fix=f"start another from its newest checkpoint: agentrl train online model={run}",
    )


def with_batch_baseline(algorithm: Algorithm) -> Algorithm:
    """``algorithm``, which compares a session that is alone in its group with the step's rewarded sessions."""
    advantage = algorithm.advantage
    compares_none = isinstance(advantage, StepAdvantage | TokenAdvantage)
    return algorithm if compares_none else replace(algorithm, advantage=BatchBaseline(advantage))


@contextlib.asynccontextmanager
async def serving_engine(
    parts: OnlineParts, backend: Backend, warn: Callable[[str], None]
) -> AsyncIterator[EngineServing]:
    """Start ``backend``, and stop it at the end of the block. Raises ``ConfigError`` where it takes no weights."""
    config = parts.config
    async with started(config, backend, warn) as capabilities:
        if not capabilities.trains:
            raise untrainable(config)
        check_sampling(config, capabilities, trains=True)
        yield EngineServing(backend, capabilities)


@dataclass
class SessionSupply:
    """Serves sessions while its ``async with`` block lasts, and hands each step those that have ended with a reward.

    At the end of the block the sessions that are open end and are stored.
    """

    parts: OnlineParts
    serving: EngineServing
    recorder: RunRecorder
    ready: Callable[[Ready], None]
    """Called once clients can connect."""
    version: int = 0
    """That of the weights which are served."""
    _buffer: SessionBuffer = field(init=False)
    _ended: defaultdict[int, list[Episode]] = field(default_factory=lambda: defaultdict(list))
    """Sessions of groups that are not whole, by ordinal."""
    _service: SessionService = field(init=False)
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _expiring: asyncio.Task[None] | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _fault: Exception | None = None
    """What stops the run."""
    _counted: Mapping[str, int] = field(default_factory=dict)
    """The counts of sessions at the step before."""

    def __post_init__(self) -> None:
        rollout = self.parts.config.rollout
        per_step = rollout.tasks_per_step * rollout.group_size
        drops = rollout.on_stale == "drop"
        self._buffer = SessionBuffer(per_step, rollout.max_staleness, "drop" if drops else "mask", self.version)

    async def __aenter__(self) -> Self:
        options, told = self.parts.options, self.recorder.reporter
        admin_key = options.admin_key or secrets.token_urlsafe(32)
        gateway = self._gateway()
        self._service = self._sessions(gateway, admin_key)
        await self._stack.enter_async_context(served(gateway, self._service))
        self._stack.enter_context(frozen_heap())
        self._expiring = asyncio.create_task(expiring(self._service, options.sessions, told.warning, lambda: None))
        self._expiring.add_done_callback(lambda _: self._changed.set())
        made = None if options.admin_key else admin_key
        model = self.parts.config.model.name
        self.ready(Ready(service_url(options, gateway), model, self.recorder.folder.path, made))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._expiring is not None:
            self._expiring.cancel()
            await asyncio.wait({self._expiring})
        try:
            await self._stack.aclose()
        except AgentRLError as unstored:
            if error is None:
                raise
            self.recorder.reporter.warning(str(unstored))  # What stopped the run is told as its outcome.

    @property
    def cursor(self) -> int:
        """One more than the highest ordinal of a group that a step has taken: there is no task order to go on in."""
        return self._buffer.next

    def take_up(self, begun: OpenGroups, version: int) -> None:
        """Raise ``ConfigError``: such a run is not resumed."""
        raise not_resumed(self.recorder.folder.path)

    async def take(self) -> Taken:
        """Wait until a step is due, and take its groups. Raises what keeps sessions from being stored."""
        while True:
            if self._fault is not None:
                raise self._fault
            if self._expiring is not None and self._expiring.done():
                self._expiring.result()
            if (taken := self._buffer.take()) is not None:
                return taken
            self._changed.clear()
            await self._changed.wait()

    def served(self, version: int) -> None:
        """The engine serves ``version``: sessions that are opened from now on begin under it."""
        self.version = version
        self._buffer.served(version)

    def counts(self) -> dict[str, float]:
        """The metrics of the sessions since the call before, and how many are open and wait for a step."""
        now, before = self._service.counts, self._counted
        self._counted = now

        def new(name: str) -> float:
            return float(now.get(name, 0) - before.get(name, 0))

        return {
            "sessions/opened": new("opened"),
            "sessions/closed": new("closed"),
            "sessions/expired": new("expired"),
            "sessions/unrewarded": new("unrewarded"),
            "sessions/open": float(now["open"]),
            "sessions/waiting": float(self._buffer.sessions),
        }

    def pause(self) -> None:
        """People cannot be held back: sessions go on, and others are opened."""

    def resume(self) -> None:
        """Nothing was held back."""

    async def at_rest(self) -> None:
        """Return at once, since ``pause`` holds nothing back."""

    def _gateway(self) -> Gateway:
        parts, options = self.parts, self.parts.options
        completer = EngineCompleter(
            self.serving.backend,
            self.serving.capabilities,
            parts.renderer,
            vocabulary=vocabulary_of(parts.model_folder),
            meter=self.recorder.meter,
        )
        return Gateway(
            QueueLimit(
                completer,
                running=self.serving.capabilities.max_concurrency,
                waiting=options.waiting,
                reported=reported_load(self.serving.backend),
            ),
            registered_dialects(parts.plugins, self.recorder.reporter.warning),
            normalisers=parts.normalisers,
            body_limit=options.body_limit,
            address=options.address,
            connections=options.connections,
        )

    def _sessions(self, gateway: Gateway, admin_key: str) -> SessionService:
        options, loop = self.parts.options, asyncio.get_running_loop()

        async def finished(episode: Episode) -> None:
            # On this loop, which the recorder belongs to, whatever thread the session ends on.
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._finished(episode), loop))

        return SessionService(
            gateway.open_session,
            self._settings,
            admin_key=admin_key,
            finished=finished,
            recall=lambda key: Run(self.recorder.folder.path).episode(key),
            opened=lambda key: _soon(loop, self._opened, key),
            group_size=self.parts.config.rollout.group_size,
            whole=lambda key: _soon(loop, self._whole, key),
            base_url=partial(session_url, options, gateway),
            limits=options.sessions,
        )

    def _settings(self) -> SessionSettings:
        config = self.parts.config
        return SessionSettings(
            training=True,
            model=config.model.name,
            temperature=config.rollout.temperature,
            max_tokens=config.rollout.max_tokens,
            override=config.rollout.override,
            versions=(self.version, LARGEST_VERSION),
            seed_key=(config.seed, ONLINE),
        )

    async def _finished(self, episode: Episode) -> None:
        """A session has ended. Where it cannot be stored the run stops, as any run does."""
        try:
            await self.recorder.episode(episode)
        except Exception as error:
            self._fault = error
            self._changed.set()
            raise
        if episode.key.phase == "train":
            self._ended[episode.key.group].append(episode)

    def _opened(self, key: EpisodeKey) -> None:
        if key.phase == "train":
            self.recorder.episode_started(key)

    def _whole(self, key: EpisodeKey) -> None:
        """All sessions of the group of ``key`` have ended."""
        if key.phase != "train":
            return
        episodes = sorted(self._ended.pop(key.group), key=lambda episode: episode.key.sample)
        self._buffer.add(Group(key.task, tuple(episodes)))
        self._changed.set()


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[EpisodeKey], None], key: EpisodeKey) -> None:
    with contextlib.suppress(RuntimeError):  # The run has ended, and nobody waits for groups.
        loop.call_soon_threadsafe(call, key)
