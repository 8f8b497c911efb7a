"""A gateway in a process of its own, before an engine that answers at once, for benchmarks that measure the server.

The parent asks for sessions and readings through a pipe; see ``Served``.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

import psutil

import agentrl_agents
from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.gateway.gateway import registered_dialects
from agentrl.inference.contract import Capabilities, Chunk, GenerationRequest
from agentrl.plugins import Plugins
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer

CONTEXT = 8192
TEXT = "The answer is 46, because 12 and 34 are 46 in all, as I said. "


class InstantBackend:
    """Samples nothing: the same words at once, as many as are asked for; one chunk a token in a stream."""

    def __init__(self, renderer: Renderer) -> None:
        ids = renderer.vocabulary.encode(TEXT)
        self._ids = ids * (CONTEXT // len(ids))
        self._end = renderer.vocabulary.convert_tokens_to_ids("<|im_end|>")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        count = request.sampling.max_tokens or 16
        ids = (*self._ids[: count - 1], self._end)
        if not request.stream:
            yield Chunk(ids, (-0.5,) * count, (1,) * count, finish="stop")
            return
        for token in ids[:-1]:
            yield Chunk((token,), (-0.5,), (1,))
        yield Chunk(ids[-1:], (-0.5,), (1,), finish="stop")


def _serve(pipe: Connection, model: str) -> None:
    renderer = load_renderer(Path(model))
    completer = EngineCompleter(InstantBackend(renderer), Capabilities(CONTEXT, 64), renderer)
    gateway = Gateway(completer, registered_dialects(Plugins(), print))
    gateway.start()
    sessions = []
    pipe.send(gateway.url)
    while (asked := pipe.recv()) is not None:
        if isinstance(asked, int):
            new = [
                gateway.open_session(SessionSettings(training=True, seed_key=(len(sessions), n))) for n in range(asked)
            ]
            sessions += new
            pipe.send([(session.base_url, session.api_key) for session in new])
        elif asked == "close":
            for session in sessions:
                session.close()
            sessions.clear()
            pipe.send(None)
        else:
            gc.collect()
            if sys.platform == "linux":
                ctypes.CDLL("libc.so.6").malloc_trim(0)
            pipe.send(psutil.Process().memory_info().rss)
    gateway.stop()


class Served(AbstractContextManager["Served"]):
    """The process, as its parent sees it."""

    def __init__(self, model: Path | None = None) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        folder = model or Path(agentrl_agents.__file__).parent / "tiny"
        self._process = spawn.Process(target=_serve, args=(theirs, str(folder)), daemon=True)

    def __enter__(self) -> Served:
        self._process.start()
        self.url: str = self._pipe.recv()
        self._usage = psutil.Process(self._process.pid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.send(None)
        self._process.join(30)

    def sessions(self, count: int) -> list[tuple[str, str]]:
        """The base URLs and keys of new sessions."""
        self._pipe.send(count)
        return self._pipe.recv()

    def close_sessions(self) -> None:
        """Close all sessions that were opened."""
        self._pipe.send("close")
        self._pipe.recv()

    def memory(self) -> int:
        """Bytes that the process holds after a garbage collection."""
        self._pipe.send("memory")
        return self._pipe.recv()

    def cpu(self) -> float:
        """Seconds of CPU that the process has used."""
        times = self._usage.cpu_times()
        return times.user + times.system
