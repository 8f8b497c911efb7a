"""The engine's own thread: it takes messages between steps and sleeps when there is nothing to do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue

import torch

from agentrl.errors import BackendError, one_line, shortened
from agentrl.inference.engine.engine import Engine

__all__ = ["EngineThread"]

Message = Callable[[Engine], None]


class EngineThread:
    """Builds an engine in a thread of its own and runs it there until it is stopped."""

    def __init__(self, build: Callable[[], Engine]) -> None:
        self.ready: Future[Engine] = Future()
        self._build = build
        self._messages: SimpleQueue[Message | None] = SimpleQueue()
        self._lock = threading.Lock()
        self.ended: BackendError | None = None
        """Why the thread is over, once it is."""
        self._thread = threading.Thread(target=self._run, name="agentrl-engine", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> bool:
        """Have ``message`` run between two steps; ``False`` where the thread has ended and nothing will run."""
        with self._lock:
            if self.ended is None:
                self._messages.put(message)
            return self.ended is None

    def failure(self) -> BackendError:
        """The error for whom ``send`` refused."""
        assert self.ended is not None
        failure = BackendError(self.ended.message, fix=self.ended.fix)
        failure.__cause__ = self.ended.__cause__
        return failure

    def stop(self) -> None:
        """End the thread after its current step, and what is in flight with it; waits until it is over."""
        self._messages.put(None)
        self._thread.join()

    def _run(self) -> None:
        with torch.inference_mode():
            try:
                engine = self._build()
            except BaseException as error:
                self._end(BackendError("the engine did not start"))
                self.ready.set_exception(error)
                return
            self.ready.set_result(engine)
            reason = BackendError("the engine was stopped", fix="start the backend again")
            try:
                self._loop(engine)
            except BaseException as error:
                reason = BackendError(f"the engine's thread died of {type(error).__name__}: {error}")
                reason.__cause__ = error
            self._end(reason)
            self._drain(engine)
            engine.fail_all(reason)
            engine.deliver()

    def _loop(self, engine: Engine) -> None:
        while self._receive(engine):
            try:
                engine.step()
            except Exception as error:
                engine.fail_all(_step_failed(error))
                engine.deliver()

    def _receive(self, engine: Engine) -> bool:
        """Take all messages, waiting for one when idle; whether to go on."""
        try:
            message = self._messages.get(block=not engine.busy)
            while message is not None:
                message(engine)
                message = self._messages.get(block=not engine.busy)
        except Empty:
            return True
        return False

    def _end(self, reason: BackendError) -> None:
        with self._lock:
            self.ended = reason

    def _drain(self, engine: Engine) -> None:
        """What was sent before the end still counts: its senders are told with everybody else."""
        while not self._messages.empty():
            message = self._messages.get()
            if message is not None:
                message(engine)


def _step_failed(error: Exception) -> BackendError:
    failure = BackendError(
        f"the engine's step failed: {type(error).__name__}: {shortened(one_line(error), 300)}",
        fix="see the cause; where memory ran out, lower inference.backend.kv_cache_tokens or rollout.concurrency",
    )
    failure.__cause__ = error
    return failure
