"""The workers of a run: which waiting episode goes to which, and how many more are started."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from agentrl.errors import AgentRLError, WorkerError
from agentrl.rollout.subproc.worker import Worker

__all__ = ["Assignment", "Pool", "WorkerLoad", "assign"]

_FAILED_STARTS = 3
"""Workers in a row that do not start before no more are tried."""


@dataclass(slots=True)
class WorkerLoad:
    """How many episodes a worker runs, and whether it takes more."""

    episodes: int = 0
    closed: bool = False
    """Whether it takes no more episodes, because the one in it or one that waits for it must be alone."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which waiting episodes go to which workers now, and how many workers to start."""

    placed: list[tuple[int, int]]
    """Pairs of indices: a waiting episode, and the worker that it goes to."""
    starts: int
    """How many workers to start."""


def assign(
    waiting: Sequence[bool], loads: Sequence[WorkerLoad], *, capacity: int, starting: int, room: int
) -> Assignment:
    """Assign waiting episodes to workers: the longest waiting first, each to the least loaded worker.

    ``waiting`` says for each episode whether it must be alone in its worker; ``loads`` are those of the live workers.
    ``starting`` workers are about to be ready, and ``room`` more may be started. A worker runs ``capacity`` episodes at
    once. Where an episode must be alone and no worker is empty, the least loaded worker takes no further episodes: its
    load then falls to zero, so no episode waits for ever.
    """
    now = [WorkerLoad(load.episodes, load.closed) for load in loads]
    soon = [WorkerLoad() for _ in range(starting)]
    placed: list[tuple[int, int]] = []
    for episode, alone in enumerate(waiting):
        limit = 1 if alone else capacity
        if (worker := _least(now, limit)) is not None:
            placed.append((episode, worker))
            _put(now[worker], alone)
        elif (worker := _least(soon, limit)) is not None:
            _put(soon[worker], alone)
        elif len(soon) < starting + room:
            soon.append(WorkerLoad())
            _put(soon[-1], alone)
        elif alone:
            _close_least(now)
        else:
            break
    return Assignment(placed, len(soon) - starting)


def _put(load: WorkerLoad, alone: bool) -> None:
    load.episodes += 1
    load.closed = alone


def _least(loads: Sequence[WorkerLoad], limit: int) -> int | None:
    """Index of the least loaded worker that takes episodes and runs fewer than ``limit``; ``None`` for none."""
    takes = [index for index, load in enumerate(loads) if not load.closed and load.episodes < limit]
    return min(takes, key=lambda index: loads[index].episodes, default=None)


def _close_least(loads: Sequence[WorkerLoad]) -> None:
    takes = [load for load in loads if not load.closed]
    if takes:
        min(takes, key=lambda load: load.episodes).closed = True


@dataclass(frozen=True, slots=True)
class _Waiter:
    alone: bool
    worker: asyncio.Future[Worker]


class Pool:
    """Starts workers as they are needed, at most ``max_workers``, and assigns episodes to them."""

    def __init__(
        self, start: Callable[[int], Awaitable[Worker]], *, max_workers: int, warn: Callable[[str], None]
    ) -> None:
        """``start`` starts the worker of a number, which counts from 1."""
        self.capacity = 1
        """Most episodes of one worker."""
        self._start = start
        self._max_workers = max_workers
        self._warn = warn
        self._loads: dict[Worker, WorkerLoad] = {}
        self._waiting: list[_Waiter] = []
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._failed_starts = 0
        self._broken: Exception | None = None
        self._has_replaced = False

    async def open(self) -> Worker:
        """Start the first worker and return it. Raises what starting it raises."""
        first = await self._start(1)
        self._add(first)
        return first

    def resize(self, max_workers: int) -> None:
        """Have at most ``max_workers`` from now on, and start those that waiting episodes need."""
        self._max_workers = max_workers
        self._failed_starts = 0
        self._dispatch()

    def warm(self) -> None:
        """Start workers until there are as many as there may be, before episodes need them."""
        if self._broken is None:
            for _ in range(self._max_workers - self._kept - len(self._starting)):
                self._begin_start()

    async def acquire(self, *, alone: bool) -> Worker:
        """Wait for a worker that can take one more episode, an empty one if ``alone``, and reserve it.

        ``release`` it afterwards. Raises the error of starting a worker where there is none and none can be started.
        """
        if self._broken is not None:
            raise _again(self._broken)
        waiter = _Waiter(alone, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._dispatch()
        try:
            return await waiter.worker
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise

    def release(self, worker: Worker) -> None:
        """End a reservation: an episode has left ``worker``."""
        load = self._loads.get(worker)
        if load is not None:
            load.episodes -= 1
            load.closed = False  # Whoever closed it for itself was alone in it.
            self._dispatch()

    async def close(self, stop_s: float) -> None:
        """End all workers and all that are starting; they are killed after ``stop_s`` seconds."""
        self.give_up(WorkerError("the workers of this run have been stopped"))
        starting = list(self._starting.values())
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        async with asyncio.TaskGroup() as tasks:
            for worker in list(self._loads):
                tasks.create_task(worker.process.stop(stop_s))

    def _withdraw(self, waiter: _Waiter) -> None:
        """Release what was reserved for a waiter that was cancelled, and assign anew."""
        if not waiter.worker.cancelled() and waiter.worker.exception() is None:
            self.release(waiter.worker.result())
        self._dispatch()

    def _dispatch(self) -> None:
        """Assign the waiting episodes, and start the workers that they need."""
        self._waiting = [waiter for waiter in self._waiting if not waiter.worker.done()]
        if self._broken is not None or not self._waiting:
            return
        alive = [worker for worker in self._loads if worker.alive]
        next_steps = assign(
            [waiter.alone for waiter in self._waiting],
            [self._loads[worker] for worker in alive],
            capacity=self.capacity,
            starting=len(self._starting),
            room=max(0, self._max_workers - self._kept - len(self._starting)),
        )
        placed = [(self._waiting[waiter], alive[worker]) for waiter, worker in next_steps.placed]
        for waiter, worker in placed:
            self._waiting.remove(waiter)
            self._loads[worker].episodes += 1
            self._loads[worker].closed = waiter.alone
            waiter.worker.set_result(worker)
        for _ in range(next_steps.starts):
            self._begin_start()

    @property
    def _kept(self) -> int:
        """How many workers are not about to be replaced."""
        return sum(not worker.retired.done() for worker in self._loads)

    def _begin_start(self) -> None:
        taken = {worker.number for worker in self._loads} | set(self._starting)
        number = next(number for number in itertools.count(1) if number not in taken)
        self._starting[number] = asyncio.get_running_loop().create_task(self._started(number))

    async def _started(self, number: int) -> None:
        try:
            worker = await self._start(number)
        except WorkerError:
            pass  # The machine that was to run it is gone: another one is tried.
        except Exception as error:  # Those that wait for the worker are told.
            self._not_started(error)
        else:
            self._failed_starts = 0
            self._add(worker)
        finally:
            del self._starting[number]
        self._dispatch()

    def _add(self, worker: Worker) -> None:
        self._loads[worker] = WorkerLoad()
        worker.process.gone.add_done_callback(lambda _: self._remove(worker))
        worker.retired.add_done_callback(lambda _: self._retired(worker))

    def _retired(self, worker: Worker) -> None:
        if not self._has_replaced:
            self._has_replaced = True
            self._warn(
                f"worker {worker.number} is replaced, and so is each that comes to hold what it does: a blocking call "
                "of the agent in a thread, past the end of its episode (give such calls a timeout of their own)"
            )
        self._dispatch()

    def _remove(self, worker: Worker) -> None:
        del self._loads[worker]
        self._dispatch()

    def _not_started(self, error: Exception) -> None:
        self._failed_starts += 1
        if self._failed_starts < _FAILED_STARTS:
            return
        self._failed_starts = 0
        if self._loads:
            self._max_workers = len(self._loads)
            self._warn(f"goes on with {self._max_workers} workers, because no more can be started: {error}")
            return
        self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """Start no more workers; every waiter, now or later, is given ``error``."""
        self._broken = error
        for waiter in self._waiting:
            if not waiter.worker.done():
                waiter.worker.set_exception(_again(error))
        self._waiting.clear()


def _again(error: Exception) -> Exception:
    """A copy of ``error`` for one of several waiters, since each raises it with a traceback of its own."""
    return type(error)(error.message, fix=error.fix) if isinstance(error, AgentRLError) else error
