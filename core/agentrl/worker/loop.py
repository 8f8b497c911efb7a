"""The event loop of a worker: a thread that it lends belongs to the episode that asks for it."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from agentrl.loops import AwakeClock, Loop
from agentrl.worker.forks import ending_in_forks

__all__ = ["WorkerLoop"]


class WorkerLoop(Loop):
    """As that of the rollout, but for ``run_in_executor``.

    What is run in a thread sees the context of the code that has it run, as with ``asyncio.to_thread``, and
    therefore its episode's environment variables; a copy of the process made there ends with it. Time stands still
    while the rollout is paused as well: Ctrl-Z stops that alone, and agents would wait in vain for its answers.
    """

    def __init__(self) -> None:
        rollout = _parent(os.getppid())  # Between it and this process is the supervisor.
        super().__init__(AwakeClock(asleep=lambda: _is_stopped(rollout)))

    def run_in_executor(  # type: ignore[override]  # The base's type says which arguments the function takes.
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """See ``asyncio``; a pool of processes gets ``func`` as it is."""
        if executor is not None and not isinstance(executor, ThreadPoolExecutor):
            return super().run_in_executor(executor, func, *args)
        context = contextvars.copy_context()
        return super().run_in_executor(executor, ending_in_forks(partial(context.run, func, *args)))


def _parent(process: int) -> int:
    return int(_stat(process)[1])


def _is_stopped(process: int) -> bool:
    """Whether a process is stopped; where the system does not say, it is not."""
    return _stat(process)[0] in "Tt"


def _stat(process: int) -> list[str]:
    """State and parent of a process, and more; as of one that runs where the system does not say."""
    try:
        # The name, in brackets, may hold anything.
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ["R", "0"]
