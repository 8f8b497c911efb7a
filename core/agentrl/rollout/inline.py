"""The executor ``inline``: agents as coroutines on the rollout's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from agentrl.agents.contract import Data, LoadedAgent
from agentrl.errors import AgentError
from agentrl.loops import PATIENCE_S, Borrower
from agentrl.rollout.contract import Activity, AgentFacts, AgentRunner, AgentSpec, ExecutorContext
from agentrl.rollout.failures import too_late

__all__ = ["InlineExecutor", "InlineRunner"]

_GRACE_S = 5.0
"""How long an agent may take to clean up once it is cancelled."""


class InlineExecutor:
    """Runs agents in this process, on the event loop that also serves their calls."""

    runs_on_event_loop = True

    def __init__(self, agent: AgentSpec) -> None:
        """Import the agent. Raises ``ConfigError`` or ``PluginError`` where it does not load or is not async."""
        self.agent = agent.load()

    def inspect(self) -> AgentFacts:
        """See ``Executor.inspect``."""
        return AgentFacts(is_async=self.agent.is_async, returns_answer=self.agent.returns_answer)

    @contextlib.asynccontextmanager
    async def running(self, context: ExecutorContext) -> AsyncIterator[AgentRunner]:
        """See ``Executor.running``; at the end, calls that an agent has left in threads are warned of."""
        runner = InlineRunner(self.agent, context.warn)
        yield runner
        runner.warn_of_calls_left()


class InlineRunner:
    """Runs an agent on the event loop of whoever awaits it.

    When an episode ends, blocking calls that its agent has left in threads are abandoned, and count no more among
    those that run at once; ``warn`` is told of the first that goes on.
    """

    def __init__(self, agent: LoadedAgent, warn: Callable[[str], None] = lambda text: None) -> None:
        self._agent = agent
        self._warn = warn
        self._has_warned = False
        self._left: list[Borrower] = []
        """Borrowers of episodes that have ended while calls of theirs still ran."""

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

        ``alone`` makes no difference: coroutines share this process, and none of them can bring it down.
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

    def warn_of_calls_left(self) -> None:
        """Warn, once, of blocking calls that still run although their episodes have ended."""
        self._left = [borrower for borrower in self._left if borrower.running]
        if self._left and not self._has_warned:
            self._has_warned = True
            self._warn(
                f"agent {self._agent.name!r} has left a blocking call running in a thread past the end of its episode: "
                "nothing can end it here (give the call a timeout of its own, or set rollout.mode=subproc, "
                "where a process that holds such calls is replaced)"
            )

    def _leave(self, borrower: Borrower) -> None:
        borrower.leave()
        if borrower.running and not self._has_warned:
            self._left.append(borrower)
            asyncio.get_running_loop().call_later(PATIENCE_S, self.warn_of_calls_left)

    async def _guarded(self, data: Data, connection: Mapping[str, Any]) -> Any:
        try:
            return await self._agent.call(data, connection)
        except (Exception, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            # SystemExit and its like would end the event loop, and every other episode with it.
            raise AgentError(f"the agent raised {type(error).__name__}({error})") from error


async def _end(task: asyncio.Task[Any], code: Coroutine[Any, Any, Any]) -> None:
    """Cancel ``task`` if it still runs; where its ``code`` goes on regardless, close that at what it awaits."""
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
