"""The executor ``plugin-name``: where the code of an agent runs, and how.

What an executor owes to a run is written in ``agentrl.rollout.contract``.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from agentrl import EpisodeTimeout
from agentrl.rollout.contract import (
    Activity,
    AgentFacts,
    AgentRunner,
    AgentSpec,
    ExecutorContext,
)
from pydantic import BaseModel, Field


class PluginNameExecutor:
    """Runs episodes on the event loop of the rollout, a few at once."""

    runs_on_event_loop = True

    class Settings(BaseModel):
        """The keys beside the name of the executor."""

        at_once: int = Field(8, ge=1)
        """The most episodes that run at once; the others wait for their turn."""

    def __init__(self, agent: AgentSpec, settings: Settings) -> None:
        """Load the agent; raises where there is none, or it does not load."""
        self.agent = agent.load()
        self.settings = settings

    def inspect(self) -> AgentFacts:
        return AgentFacts(
            is_async=self.agent.is_async, returns_answer=self.agent.returns_answer
        )

    @contextlib.asynccontextmanager
    async def running(self, context: ExecutorContext) -> AsyncIterator[AgentRunner]:
        self.turns = asyncio.Semaphore(self.settings.at_once)
        yield self

    async def run(
        self,
        data: dict[str, Any],
        connection: Mapping[str, Any],
        *,
        deadline_s: float,
        activity: Callable[[], Activity],
        alone: bool = False,
    ) -> Any:
        async with self.turns:
            try:
                async with asyncio.timeout(deadline_s) as deadline:
                    # The task is the agent's own copy, to do with as it likes.
                    return await self.agent.call(copy.deepcopy(data), connection)
            except TimeoutError as error:
                if not deadline.expired():
                    raise  # The agent's own.
                words = activity().words
                late = f"the episode took more than {deadline_s:g} s; it was {words}"
                raise EpisodeTimeout(late) from error
