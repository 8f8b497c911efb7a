"""The event loop of a worker: a thread that it lends belongs to the episode that asks for it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

from agentrl.loops.loop import Loop
from agentrl.worker.forks import ending_in_forks

__all__ = ["WorkerLoop"]


class WorkerLoop(Loop):
    """As that of the rollout, but for ``run_in_executor``.

    What is run in a thread sees the context of the code that has it run, as with ``asyncio.to_thread``, and
    therefore its episode's environment variables; a copy of the process made there ends with it.
    """

    def run_in_executor(  # type: ignore[override]  # The base's type says which arguments the function takes.
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """See ``asyncio``; a pool of processes gets ``func`` as it is."""
        if executor is not None and not isinstance(executor, ThreadPoolExecutor):
            return super().run_in_executor(executor, func, *args)
        context = contextvars.copy_context()
        return super().run_in_executor(executor, ending_in_forks(partial(context.run, func, *args)))
