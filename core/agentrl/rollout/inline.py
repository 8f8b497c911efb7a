"""The inline runner: agents as coroutines in the rollout process."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from agentrl.agents.binding import BoundAgent
from agentrl.agents.contract import Data
from agentrl.errors import AgentError
from agentrl.rollout.deadline import Stage, too_late

__all__ = ["InlineRunner"]

_GRACE_S = 5.0
"""How long an agent may take to clean up once it is cancelled."""


class InlineRunner:
    """Runs a bound agent on the event loop of whoever awaits it."""

    def __init__(self, agent: BoundAgent) -> None:
        self._agent = agent

    async def run(
        self,
        data: Data,
        connection: Mapping[str, Any],
        *,
        deadline_s: float,
        stage: Callable[[], Stage],
        alone: bool = False,
    ) -> Any:
        """See ``AgentRunner.run``; the agent works on its own deep copy of ``data``.

        ``alone`` is the same as otherwise: coroutines share a process, and nothing here brings that down.
        """
        code = self._guarded(copy.deepcopy(data), connection)
        task = asyncio.ensure_future(code)
        try:
            done, _ = await asyncio.wait({task}, timeout=deadline_s)
            if not done:
                raise too_late(deadline_s, stage())
        finally:
            await _end(task, code)
        if task.cancelled():
            raise AgentError("the agent cancelled its own task")
        return task.result()

    async def _guarded(self, data: Data, connection: Mapping[str, Any]) -> Any:
        try:
            return await self._agent.run(data, connection)
        except (Exception, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            # SystemExit and its like would end the event loop, and every other episode with it.
            raise AgentError(f"the agent raised {type(error).__name__}({error})") from error


async def _end(task: asyncio.Task[Any], code: Coroutine[Any, Any, Any]) -> None:
    """Cancel ``task`` if it still runs; from code that goes on regardless, what it awaits is taken away."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_GRACE_S)
    if not task.done():
        with contextlib.suppress(RuntimeError):  # Raised where the code awaits something even now.
            code.close()
        task.cancel()
        await asyncio.wait({task}, timeout=_GRACE_S)
    if task.done() and not task.cancelled():
        task.exception()  # Marks it as seen: whoever needs it asks for the result.
