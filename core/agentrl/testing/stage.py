"""Episodes of one agent on the real gateway, with a scripted backend in the place of the model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentrl.errors import AgentRLError
from agentrl.gateway import Gateway, Session, SessionSettings
from agentrl.inference.contract import Capabilities
from agentrl.rollout.contract import AgentRunner
from agentrl.rollout.episode import Episode, EpisodeKey
from agentrl.rollout.runner import EpisodeRunner, Score
from agentrl.testing.looping import LoopThread
from agentrl.testing.scripted import Script, ScriptedBackend

__all__ = ["Played", "Stage"]

_CLEANUP_S = 15.0
"""How much longer than its deadline an episode may take to end."""


@dataclass(frozen=True, slots=True)
class Played:
    """An episode that has ended."""

    episode: Episode
    returned: Any
    """What ``run`` returned; ``None`` where it raised."""
    refusals: tuple[AgentRLError, ...]
    """The errors with which calls were answered."""

    @property
    def asked(self) -> int:
        """How many requests of the agent were answered, with an error or without."""
        return len(self.episode.calls) + len(self.refusals)


@dataclass
class _Listening:
    """A runner that remembers what the agent returned."""

    runner: AgentRunner
    connection: Mapping[str, Any]
    returned: Any = None

    async def run(self, data: Any, connection: Mapping[str, Any], **how: Any) -> Any:
        self.returned = await self.runner.run(data, {**connection, **self.connection}, **how)
        return self.returned


@dataclass
class Stage:
    """Runs episodes of an agent. ``close`` it at the end."""

    agent: AgentRunner
    score: Score | None
    timeout: float
    override: Mapping[str, Any] = field(default_factory=dict)
    context_length: int = 32768

    def __post_init__(self) -> None:
        self.loop = LoopThread()
        self.backend = ScriptedBackend([""], context_length=self.context_length)
        capabilities = Capabilities(self.context_length, max_concurrency=64)
        self.gateway = Gateway(self.backend, capabilities, self.backend.renderer)
        self.gateway.start()

    def close(self) -> None:
        """End the gateway and the loop. Safe to call twice."""
        self.gateway.stop()
        self.loop.close()

    def play(self, completions: Script, *tasks: dict[str, Any], **connection: Any) -> list[Played]:
        """One episode a task, all at once, each with the script from its beginning.

        ``connection`` replaces values that the agent is given. Fails the test where an episode does not end.
        """
        self.backend.play(completions)
        return self.loop.run(
            self._all(tasks, connection), deadline_s=self.timeout + _CLEANUP_S, what="the agent's episode"
        )

    async def _all(self, tasks: tuple[dict[str, Any], ...], connection: Mapping[str, Any]) -> list[Played]:
        return await asyncio.gather(
            *(self._episode(EpisodeKey("train", 0, number, 0), task, connection) for number, task in enumerate(tasks))
        )

    async def _episode(self, key: EpisodeKey, data: dict[str, Any], connection: Mapping[str, Any]) -> Played:
        sessions: list[Session] = []
        listening = _Listening(self.agent, connection)

        def open_session(settings: SessionSettings) -> Session:
            sessions.append(self.gateway.open_session(settings))
            return sessions[-1]

        runner = EpisodeRunner(listening, open_session, self.score, self.timeout, max_attempts=1)
        settings = SessionSettings(training=True, override=self.override, seed_key=(str(key),))
        episode = await runner.run(key, data, settings)
        return Played(episode, listening.returned, sessions[0].refusals)
