"""Servers for tests: fake ones that start in a moment, and what is left of them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil

from agentrl_vllm.command import Command
from agentrl_vllm.server import Server

FAKE = Path(__file__).with_name("fake_vllm.py")
MARK = "TEST_SERVER_MARK"
DEADLINE_S = 60.0


def command(mark: str, options: dict[str, Any] | None = None) -> Callable[[int, Path], Command]:
    """The fake server with ``options``; all of its processes bear ``mark`` in their environment."""

    def build(port: int, scratch: Path) -> Command:
        (scratch / "tmp").mkdir()
        env = {**os.environ, MARK: mark, "TMPDIR": str(scratch / "tmp")}
        return Command((sys.executable, str(FAKE), str(port), json.dumps(options or {})), env)

    return build


def fake_server(log: Path, **options: Any) -> Server:
    """A fake server whose processes bear the path of its log."""
    own = {name: options.pop(name) for name in ("port", "shared", "start_timeout", "say") if name in options}
    return Server(command(str(log), options), name="the fake server", log=log, **own)


def processes(mark: object) -> list[psutil.Process]:
    """The living processes that bear ``mark``, supervisor and guard among them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def children() -> set[psutil.Process]:
    """All that this process has started, and what that has."""
    return set(psutil.Process().children(recursive=True))


def kill_workers() -> None:
    """Kill vLLM's processes of the servers that a backend has started, not of those that a test has: these bear a mark.

    vLLM writes the titles of its processes over their environment, so the mark is looked for in what started them.
    """
    marked = {each for each in children() if _is_marked(each)}
    workers = [
        each for each in children() if each.name().startswith("VLLM::") and not marked.intersection(each.parents())
    ]
    assert workers
    for worker in workers:
        worker.kill()


def _is_marked(process: psutil.Process) -> bool:
    try:
        return MARK in process.environ()
    except psutil.Error:
        return False


def nothing_left(mark: object) -> bool:
    """Whether all that bears ``mark`` has ended, or does within a few seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not processes(mark):
            return True
        time.sleep(0.05)
    return False


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run ``coroutine`` to its end, which has to come."""

    async def bounded() -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return await coroutine

    return asyncio.run(bounded())
