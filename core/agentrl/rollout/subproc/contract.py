"""What carries worker processes: it starts them, here or on other machines, and passes bytes to and from them.

Those bytes are the text of the worker protocol (``agentrl.worker.protocol``) and what the agent prints, whatever
carries them; nothing else of an agent reaches the rollout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from agentrl.errors import PluginError

__all__ = ["Carrier", "StartedProcess"]


class StartedProcess(Protocol):
    """A process ``python -m agentrl.worker``. All of it is called on the event loop that it was started on."""

    @property
    def place(self) -> str:
        """Which process it is, in words, such as ``process 4711`` or ``process 4711 on node-2``."""
        ...

    @property
    def exit(self) -> asyncio.Future[None]:
        """Done once the process has ended, or nothing will ever be heard of it again."""
        ...

    @property
    def returncode(self) -> int:
        """Its exit status, negative for a signal; known once it is buried."""
        ...

    @property
    def lost(self) -> str | None:
        """How the machine that it ran on was lost, to complete the sentence "the agent's process …", where it was."""
        ...

    async def connect(self, channel: asyncio.Protocol, output: asyncio.Protocol) -> None:
        """Pass on what the process says to ``channel``, over whose transport it is sent messages, and what it prints
        to ``output``. Neither hears of anything before."""
        ...

    def kill(self) -> None:
        """Begin to kill the process and all that it has started."""
        ...

    async def bury(self) -> None:
        """Once the process has ended, end what it has left behind."""
        ...

    def close(self) -> None:
        """Release what is held of it. Safe to call twice."""
        ...

    async def diagnose(self, how: str) -> PluginError:
        """Why it has not loaded its agent, where it ended in the way that ``how`` says."""
        ...


class Carrier(Protocol):
    """Starts the worker processes of one agent."""

    async def launch(self, env: Mapping[str, str]) -> StartedProcess:
        """Start a process, with the variables ``env`` beside those that the agent's processes have.

        Raises ``ConfigError`` or ``PluginError`` where there is no such interpreter or none can be started, and
        ``WorkerError`` where the machine that was to run it was lost.
        """
        ...

    def close(self) -> None:
        """End every process that is left, as where whoever waited for its end was cancelled, and what starting and
        killing them needs."""
        ...
