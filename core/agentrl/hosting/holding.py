"""A host's life, in its own process: make the object, call its methods as they are asked for, close it, leave."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from agentrl.errors import AgentRLError
from agentrl.hosting.contract import error_of_host
from agentrl.hosting.wire import Wire
from agentrl.loops import Loop

__all__ = ["Answer", "Begin", "Call", "Cancel", "Made", "Stop", "hold"]


@dataclass(frozen=True, slots=True)
class Begin:
    """The first message to a host: what it is to be."""

    name: str
    target: str
    arguments: Mapping[str, Any]
    path: list[str]
    """Where modules are imported from, as in the process that has started it."""


@dataclass(frozen=True, slots=True)
class Call:
    """Call a method."""

    number: int
    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for the answer to a call any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Close the object, and end."""


@dataclass(frozen=True, slots=True)
class Made:
    """The first message of a host: its object is made, or could not be."""

    process: int
    error: AgentRLError | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call has returned, or raised."""

    number: int
    result: Any = None
    error: AgentRLError | None = None


def hold(wire: Wire) -> int:
    """Hold the object that the first message over ``wire`` names until one tells to stop; returns the exit code.

    Plain methods are called in this thread, which is the main one, in the order in which they were asked for.
    """
    begin: Begin = wire.receive()
    sys.path[:] = begin.path
    try:
        module, _, name = begin.target.partition(":")
        held = getattr(importlib.import_module(module), name)(**begin.arguments)
    except Exception as error:
        traceback.print_exc()
        wire.send(Made(os.getpid(), error_of_host(error, begin.name, "be made")))
        return 1
    wire.send(Made(os.getpid()))
    calls = _Calls(wire, begin.name, held)
    threading.Thread(target=calls.listen, name="agentrl-host", daemon=True).start()
    calls.work()
    close = getattr(held, "close", None)
    if callable(close):
        close()
    return 0


class _Calls:
    """The calls of one object's methods."""

    def __init__(self, wire: Wire, name: str, held: object) -> None:
        self._wire = wire
        self._name = name
        self._held = held
        self._plain: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._running: dict[int, Future[Any]] = {}
        """The coroutine methods that are under way."""
        self._loop: asyncio.AbstractEventLoop | None = None

    def work(self) -> None:
        """Call plain methods until the host is told to stop."""
        while (call := self._plain.get()) is not None:
            call()
            del call  # With its arguments, which may be large.

    def listen(self) -> None:
        """Take messages, and end the process at once where whoever sends them is gone."""
        try:
            while True:
                message = self._wire.receive()
                if isinstance(message, Stop):
                    self._plain.put(None)
                elif isinstance(message, Cancel):
                    if (running := self._running.get(message.number)) is not None:
                        running.cancel()
                else:
                    self._take(message)
                del message
        except EOFError:
            os._exit(1)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _take(self, call: Call) -> None:
        method = getattr(self._held, call.method, None)
        if not callable(method):
            told = AttributeError(f"{type(self._held).__name__} has no method {call.method!r}")
            self._answer(Answer(call.number, error=error_of_host(told, self._name, call.method)))
        elif inspect.iscoroutinefunction(method):
            running = asyncio.run_coroutine_threadsafe(method(*call.args, **call.kwargs), self._event_loop())
            self._running[call.number] = running
            running.add_done_callback(lambda done: self._done(call, done))
        else:
            self._plain.put(lambda: self._call(method, call))

    def _call(self, method: Callable[..., Any], call: Call) -> None:
        try:
            answer = Answer(call.number, method(*call.args, **call.kwargs))
        except Exception as error:
            answer = self._failed(call, error)
        self._answer(answer)

    def _done(self, call: Call, done: Future[Any]) -> None:
        self._running.pop(call.number, None)
        if done.cancelled():
            return
        error = done.exception()
        self._answer(Answer(call.number, done.result()) if error is None else self._failed(call, error))

    def _failed(self, call: Call, error: BaseException) -> Answer:
        if not isinstance(error, AgentRLError):
            traceback.print_exception(error)
        return Answer(call.number, error=error_of_host(error, self._name, call.method))

    def _answer(self, answer: Answer) -> None:
        try:
            self._wire.send(answer)
        except OSError:
            pass  # Whoever asked is gone, and ``listen`` ends this process.
        except Exception as error:  # What cannot be pickled.
            told = error_of_host(error, self._name, "return what it has")
            with contextlib.suppress(OSError):
                self._wire.send(Answer(answer.number, error=told))

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = Loop()
            threading.Thread(target=self._loop.run_forever, name="agentrl-host-loop", daemon=True).start()
        return self._loop
