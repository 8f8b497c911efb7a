"""The inline runner: agents as coroutines in the rollout process."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping
from typing import Any

from agentrl.agents.binding import BoundAgent
from agentrl.agents.contract import Data
from agentrl.errors import AgentError, EpisodeTimeout

__all__ = ["InlineRunner"]

_GRACE_S = 5.0
"""How long an agent may take to clean up once it is cancelled."""


class InlineRunner:
    """Runs a bound agent on the event loop of whoever awaits it."""

    def __init__(self, agent: BoundAgent) -> None:
        self._agent = agent

    async def run(
        self, data: Data, connection: Mapping[str, Any], *, deadline_s: float, stage: Callable[[], str]
    ) -> Any:
        """See ``AgentRunner.run``; the agent works on its own deep copy of ``data``."""
        task = asyncio.ensure_future(self._guarded(copy.deepcopy(data), connection))
        try:
            done, _ = await asyncio.wait({task}, timeout=deadline_s)
            if not done:
                raise EpisodeTimeout(
                    f"the episode did not end within {deadline_s:g} s; it was {stage()}",
                    fix="raise rollout.episode_timeout, or make the agent faster",
                )
        finally:
            await _end(task)
        if task.cancelled():
            raise AgentError("the agent cancelled its own task")
        return task.result()

    async def _guarded(self, data: Data, connection: Mapping[str, Any]) -> Any:
        try:
            return await self._agent.run(data, connection)
        except (Exception, asyncio.CancelledError, KeyboardInterrupt):
            raise  # The last is the user's, who wants all to end at once.
        except BaseException as error:
            # SystemExit and its like would end the event loop, and every other episode with it.
            raise AgentError(f"the agent raised {type(error).__name__}({error})") from error


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel ``task`` if it still runs; one that ignores that for long is left behind."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_GRACE_S)
    if task.done() and not task.cancelled():
        task.exception()  # Marks it as seen: whoever needs it asks for the result.
