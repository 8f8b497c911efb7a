"""What runs in every Ray actor of ours: a host's object, and the answers to questions that are asked of it.

Questions and answers cross as bytes that the two sides pickle themselves, since arrays that Ray carries arrive
read-only.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib
import inspect
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from agentrl import AgentRLError
from agentrl.hosting.contract import error_of_host
from agentrl_ray.sharing import Mark, faults

__all__ = ["Answer", "Greeting", "HostActor", "Question", "core_version", "printed_since", "without_rays_own"]

_CHUNK = 1 << 20
_F_GETPATH = 50
"""Of macOS: the path of an open file."""

_RAYS_OWN: Final = (b":job_id:", b":actor_name:", b":task_name:")
"""What lines begin with that Ray writes for its own reader of logs."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """Who a host is."""

    pid: int
    hostname: str
    python: str
    core: str | None
    """The version of agentrl-core; ``None`` where it is not installed as a distribution."""
    logs: tuple[str, ...]
    """The files that hold what the process prints; none where they are not known."""


class Question(NamedTuple):
    """A call of a method of the host's object."""

    number: int
    """Counts from 0; a plain method is called after those of smaller numbers."""
    method: str
    payload: bytes
    """Positional and keyword arguments."""


class Answer(NamedTuple):
    """What came of a question."""

    kind: Literal["returned", "raised"]
    payload: bytes
    """What was returned, or the error, one of ours."""


class HostActor:
    """Holds one object. Its methods run on the actor's event loop, plain ones of the object in one thread."""

    def __init__(self) -> None:
        self._object: Any = None
        self._name = ""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="agentrl-host")
        self._next = 0
        self._turned = asyncio.Condition()
        self._running: dict[int, asyncio.Task[Answer]] = {}

    async def greet(self, name: str, folder: str) -> Greeting:
        """Be called ``name``, go to ``folder`` where there is one, and say who this is."""
        self._name = name
        with contextlib.suppress(OSError):
            os.chdir(folder)
        sys.stdout.flush()
        return Greeting(
            pid=os.getpid(),
            hostname=socket.gethostname(),
            python=".".join(map(str, sys.version_info[:3])),
            core=core_version(),
            logs=tuple(path for path in map(_path_of, (1, 2)) if path is not None),
        )

    async def live(self) -> None:
        """Never return: whoever waits for it hears of the end of this process."""
        await asyncio.Event().wait()

    async def faults(self, marks: list[Mark]) -> list[tuple[str, str, str]]:
        """What of ``marks`` is not as it should be on this node."""
        return await asyncio.get_running_loop().run_in_executor(None, faults, marks)

    async def make(self, target: str, arguments: bytes) -> Answer:
        """Call ``target`` with ``arguments``, by keyword, and keep the object that it makes."""

        def made() -> None:
            module, _, name = target.partition(":")
            maker = getattr(importlib.import_module(module), name)
            self._object = maker(**pickle.loads(arguments))  # noqa: S301 - Pickled by our own process.

        return await self._answered("start", asyncio.get_running_loop().run_in_executor(self._thread, made))

    async def ask(self, question: Question) -> Answer:
        """Answer ``question`` when those of smaller numbers have begun."""
        async with self._turned:
            await self._turned.wait_for(lambda: self._next == question.number)
            self._next += 1
            task = asyncio.get_running_loop().create_task(self._answered(question.method, self._called(question)))
            await asyncio.sleep(0)  # Coroutines begin in the order of the questions, too.
            self._turned.notify_all()
        self._running[question.number] = task
        try:
            return await task
        except asyncio.CancelledError:
            return self._failed(question.method, RuntimeError("it was cancelled"))
        finally:
            del self._running[question.number]

    async def cancel(self, number: int) -> None:
        """Cancel a question, where that is a coroutine."""
        if (task := self._running.get(number)) is not None:
            task.cancel()

    async def finish(self, patience: float) -> str | None:
        """Close the object, within ``patience`` seconds; returns what went wrong with that."""
        close = getattr(self._object, "close", None)
        if close is None:
            return None
        try:
            async with asyncio.timeout(patience):
                if inspect.iscoroutinefunction(close):
                    await close()
                else:
                    await asyncio.get_running_loop().run_in_executor(None, close)
        except TimeoutError:
            return f"its close did not return within {patience:g} s"
        except Exception as error:
            return f"its close raised {type(error).__name__}: {error}"
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return None

    async def printed(self, offsets: Mapping[str, int]) -> dict[str, bytes]:
        """What was printed into log files since ``offsets``."""
        return printed_since(offsets)

    async def _called(self, question: Question) -> Any:
        args, kwargs = pickle.loads(question.payload)  # noqa: S301 - Pickled by our own process.
        method = getattr(self._object, question.method)
        if inspect.iscoroutinefunction(method):
            return await method(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: method(*args, **kwargs))

    async def _answered(self, what: str, call: Awaitable[Any]) -> Answer:
        try:
            return Answer("returned", pickle.dumps(await call, protocol=pickle.HIGHEST_PROTOCOL))
        except Exception as error:
            return self._failed(what, error)

    def _failed(self, what: str, error: Exception) -> Answer:
        if not isinstance(error, AgentRLError):
            traceback.print_exception(error)
            sys.stderr.flush()
        return Answer("raised", pickle.dumps(error_of_host(error, self._name, what)))


def printed_since(offsets: Mapping[str, int]) -> dict[str, bytes]:
    """What the files hold beyond ``offsets``, at most a megabyte of each and without the lines that are Ray's own."""
    found = {}
    for path, offset in offsets.items():
        with contextlib.suppress(OSError), Path(path).open("rb") as file:
            file.seek(offset)
            found[path] = file.read(_CHUNK)
    return found


def without_rays_own(chunk: bytes) -> bytes:
    """``chunk`` without the lines that Ray writes for its own reader of logs."""
    lines = chunk.splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(_RAYS_OWN))


def _path_of(descriptor: int) -> str | None:
    """The path of the file that ``descriptor`` writes to; ``None`` where it is no file."""
    try:
        if sys.platform == "darwin":
            path = fcntl.fcntl(descriptor, _F_GETPATH, b"\0" * 1024).rstrip(b"\0").decode()
        else:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None
    return path if Path(path).is_file() else None


def core_version() -> str | None:
    """The version of agentrl-core here; ``None`` where it is not installed as a distribution."""
    try:
        return metadata.version("agentrl-core")
    except metadata.PackageNotFoundError:
        return None
