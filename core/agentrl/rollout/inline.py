"""The inline runner: agents as coroutines in the rollout process."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from agentrl.agents.binding import BoundAgent
from agentrl.agents.contract import Data
from agentrl.errors import AgentError
from agentrl.loops import PATIENCE_S, Borrower
from agentrl.rollout.contract import Activity
from agentrl.rollout.failures import too_late

__all__ = ["InlineRunner"]

_GRACE_S = 5.0
"""How long an agent may take to clean up once it is cancelled."""


class InlineRunner:
    """Runs a bound agent on the event loop of whoever awaits it.

    Blocking calls that an agent has left in threads are left behind when its episode ends, and count no more among
    those that run at once; ``warn`` is told of the first that goes on.
    """

    def __init__(self, agent: BoundAgent, warn: Callable[[str], None] = lambda text: None) -> None:
        self._agent = agent
        self._warn = warn
        self._has_warned = False
        self._behind: list[Borrower] = []
        """Episodes that have ended, and left calls that ran then."""

    async def run(
        self,
        data: Data,
        connection: Mapping[str, Any],
        *,
        deadline_s: float,
        activity: Callable[[], Activity],
        alone: bool = False,
    ) -> Any:
        """See ``AgentRunner.run``; the agent works on its own deep copy of ``data``.

        ``alone`` is the same as otherwise: coroutines share a process, and nothing here brings that down.
        """
        code, borrower = self._guarded(copy.deepcopy(data), connection), Borrower()
        context = contextvars.copy_context()
        context.run(borrower.enter)
        task = asyncio.get_running_loop().create_task(code, context=context)
        try:
            done, _ = await asyncio.wait({task}, timeout=deadline_s)
            if not done:
                raise too_late(deadline_s, activity())
        finally:
            await _end(task, code)
            self._leave(borrower)
        if task.cancelled():
            raise AgentError("the agent cancelled its own task")
        return task.result()

    def tell(self) -> None:
        """Warn, once, of calls that go on though their episodes have ended."""
        self._behind = [borrower for borrower in self._behind if borrower.running]
        if self._behind and not self._has_warned:
            self._has_warned = True
            self._warn(
                f"agent {self._agent.name!r} has left a blocking call running in a thread past the end of its episode: "
                "nothing can end it here (give the call a timeout of its own, or set rollout.mode=subproc, "
                "where a process that holds such calls is replaced)"
            )

    def _leave(self, borrower: Borrower) -> None:
        borrower.leave()
        if borrower.running and not self._has_warned:
            self._behind.append(borrower)
            asyncio.get_running_loop().call_later(PATIENCE_S, self.tell)

    async def _guarded(self, data: Data, connection: Mapping[str, Any]) -> Any:
        try:
            return await self._agent.call(data, connection)
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
