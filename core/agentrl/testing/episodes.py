"""Episodes of one agent on the real gateway, with a scripted backend in place of the model."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from agentrl.agents.contract import Data
from agentrl.config.models import Config
from agentrl.environments import locate_agent
from agentrl.errors import AgentRLError
from agentrl.gateway import EngineCompleter, Gateway, Session, SessionSettings
from agentrl.gateway.normalise import Normalisers
from agentrl.inference.contract import Chunk, GenerationRequest
from agentrl.plugins import Plugins
from agentrl.rewards import call_reward, load_reward
from agentrl.rollout.contract import AgentRunner, Episode, EpisodeKey
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.rollout.inline import InlineExecutor
from agentrl.testing.loop_thread import LoopThread
from agentrl.testing.scripted import Script, ScriptedBackend, capabilities
from agentrl.training.parts import check_override, resolve_executor
from agentrl.training.serving import running_agent

__all__ = ["EpisodePlayer", "Played"]

_CONTEXT = 2**20
"""Context length in tokens, more than any conversation of a test takes."""

_START_S = 120.0
"""Seconds that an agent in a process of its own may take to start, and to end."""

_CLEANUP_S = 15.0
"""Seconds that an episode may take to end after its deadline."""

_UNCHANGED: Mapping[str, Any] = {}

_PATIENCE_S = 3.0
"""Seconds that an episode's first answer waits for the first requests of the others."""


@dataclass(frozen=True, slots=True)
class Played:
    """A finished episode, with what only a test asks for."""

    episode: Episode
    returned: Any
    """What ``run`` returned; ``None`` where it raised."""
    refusals: tuple[AgentRLError, ...]
    """The errors with which calls were answered."""

    @property
    def asked(self) -> int:
        """How many requests of the agent were answered, with or without an error."""
        return len(self.episode.calls) + len(self.refusals)


class EpisodePlayer:
    """Runs episodes of the agent that ``config`` names, or of ``agent`` itself, as a training run would.

    A context manager: entering it starts the agent. The constructor raises ``ConfigError`` or ``PluginError`` where a
    run could not start.
    """

    def __init__(self, config: Config, agent: Any = None) -> None:
        plugins = Plugins()
        check_override(config)
        self.config = config if agent is not None else locate_agent(config, plugins)
        self.agent = resolve_executor(self.config, plugins, agent)
        self._score = None if config.reward is None else partial(call_reward, load_reward(plugins, config.reward))
        self.warnings: list[str] = []
        """The warnings that a run would have given."""
        self.backend = GatheringBackend([""], context_length=_CONTEXT)
        completer = EngineCompleter(self.backend, capabilities(_CONTEXT, 64), self.backend.renderer)
        self.gateway = Gateway(completer, normalisers=Normalisers.build(plugins, config.gateway.normalise))
        self._loop = LoopThread()
        self._running = contextlib.AsyncExitStack()
        self._runner: AgentRunner

    def __enter__(self) -> Self:
        self.gateway.start()
        self._client_at_first = _client_settings(self.gateway.http_client())
        running = running_agent(self.agent, self.config, self.gateway, None, self.warnings.append)

        async def start() -> AgentRunner:
            return await self._running.enter_async_context(running)

        self._runner = self._loop.run(start(), deadline_s=_START_S, what="the agent's start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._loop.run(self._running.aclose(), deadline_s=_START_S, what="the agent's end")
        finally:
            self.gateway.stop()
            self._loop.close()

    def play(
        self, completions: Script, *tasks: Data, gather: bool = False, connection: Mapping[str, Any] = _UNCHANGED
    ) -> list[Played]:
        """Runs one episode per task, all at once, each with the script from its beginning, and returns them in order.

        With ``gather`` no episode's first call is answered before all have made theirs. ``connection`` replaces
        values that the agent is given. Fails the test where an episode does not end in time.
        """
        self.backend.play(completions)
        self.backend.expected = len(tasks) if gather else 1

        async def episodes() -> list[Played]:
            return await asyncio.gather(*(self._episode(task, connection) for task in tasks))

        deadline = len(tasks) * (self.config.rollout.episode_timeout + _CLEANUP_S)
        deadline += _START_S if self.config.runs_in_workers else 0  # For a process that replaces one that ended.
        return self._loop.run(episodes(), deadline_s=deadline, what="the agent's episode")

    def ask_beside(self, completion: str) -> str | None:
        """Returns the answer to a call of another session through the HTTP client that all episodes share."""
        self.backend.play([completion])
        self.backend.expected = 1
        return self._loop.run(_ask_beside(self.gateway), deadline_s=_CLEANUP_S, what="a call beside the agent's")

    def changes_of_the_client(self) -> dict[str, object]:
        """Returns the settings of the shared HTTP client that differ from those before the first episode."""
        now = _client_settings(self.gateway.http_client())
        return {name: value for name, value in now.items() if value != self._client_at_first[name]}

    def takes(self, names: set[str]) -> bool:
        """Returns whether the agent runs in this process and its ``run`` takes all arguments ``names``."""
        return isinstance(self.agent, InlineExecutor) and all(map(self.agent.agent.takes, names))

    async def _episode(self, data: Data, connection: Mapping[str, Any]) -> Played:
        sessions: list[Session] = []
        recording = _RecordingRunner(self._runner, connection)

        def open_session(settings: SessionSettings) -> Session:
            sessions.append(self.gateway.open_session(settings))
            return sessions[-1]

        timeout = self.config.rollout.episode_timeout
        runner = EpisodeRunner(recording, open_session, self._score, timeout, max_attempts=1)
        settings = SessionSettings(training=True, override=self.config.rollout.override)
        episode = await runner.run_episode(EpisodeKey("train", 0, 0, 0), data, settings)
        return Played(episode, recording.returned, sessions[0].refusals)


def _client_settings(client: Any) -> dict[str, object]:
    """What an HTTP client adds to every request that goes through it."""
    return {
        "headers": sorted(client.headers.multi_items()),
        "base_url": str(client.base_url),
        "timeout": repr(client.timeout),
        "cookies": sorted(client.cookies.items()),
        "auth": client.auth,
        "event_hooks": {event: list(hooks) for event, hooks in client.event_hooks.items()},
        "closed": client.is_closed,
    }


async def _ask_beside(gateway: Gateway) -> str | None:
    """The answer to a call of another session through the shared client."""
    from openai import AsyncOpenAI

    session = gateway.open_session(SessionSettings(training=True))
    try:
        client = AsyncOpenAI(
            base_url=session.base_url, api_key=session.api_key, http_client=gateway.http_client(), max_retries=0
        )
        reply = await client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "Hello"}])
        return reply.choices[0].message.content
    finally:
        session.close()


@dataclass
class _RecordingRunner:
    """A runner that keeps what the agent returned, and replaces some of what it is given."""

    runner: AgentRunner
    connection: Mapping[str, Any]
    returned: Any = None

    async def run(self, data: Data, connection: Mapping[str, Any], **how: Any) -> Any:
        self.returned = await self.runner.run(data, {**connection, **self.connection}, **how)
        return self.returned


class GatheringBackend(ScriptedBackend):
    """A scripted backend that answers no session's first request before ``expected`` sessions have made theirs."""

    expected = 1
    alone = 0
    """How many requests waited in vain for those of other sessions."""

    def play(self, completions: Script) -> None:
        """See ``ScriptedBackend.play``."""
        super().play(completions)
        self._asked: set[str | None] = set()
        self.alone = 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """See ``ScriptedBackend.generate``."""
        self._asked.add(request.session)
        patience = time.monotonic() + _PATIENCE_S
        while len(self._asked) < self.expected:
            if time.monotonic() > patience:
                self.alone += 1
                break
            await asyncio.sleep(0.005)
        async with contextlib.aclosing(super().generate(request)) as stream:
            async for chunk in stream:
                yield chunk
