"""Agents that go wrong where their task says so, each in one way; run in workers, never imported by a test."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


async def ask(base_url, api_key, http_client):
    body = {"model": "any", "messages": [{"role": "user", "content": "How many?"}]}
    headers = {"authorization": f"Bearer {api_key}"}
    response = await http_client.post(f"{base_url}/chat/completions", json=body, headers=headers)
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["content"]


def faulty(fault):
    """An agent that makes one call and stays for a moment, or does ``fault(data)`` instead."""

    async def agent(data, *, base_url, api_key, http_client):
        if data.get("fault"):
            returned = fault(data)
            return await returned if asyncio.iscoroutine(returned) else returned
        answer = await ask(base_url, api_key, http_client)
        await asyncio.sleep(0.2)
        return float("46" in answer)

    return agent


def killed(data):
    os.kill(os.getpid(), signal.SIGKILL)


def exited(data):
    os._exit(data["fault"])


def exited_well(data):
    os._exit(0)


def segfaulted(data):
    ctypes.string_at(0)


def blocked(data):
    time.sleep(3600)


def looped(data):
    while True:
        pass


async def waited(data):
    await asyncio.Event().wait()


async def stubborn(data):
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


def forked(data):
    """Goes on in both processes; in the child too it comes to an end, and then that one must not go on."""
    record(data, os.fork() or os.getpid())
    return 1.0


def printed(data):
    line = b"x" * 1023 + b"\n"
    for _ in range(data["fault"] // 1024 // 64):
        os.write(1, line * 64)
    return 1.0


def printed_without_end(data):
    for _ in range(data["fault"] // 65536):
        os.write(2, b"x" * 65536)
    return 1.0


def unfit(data):
    return {"answer": [1.0, {2, 3}]}


def left_children(data):
    """Two that would live on, one of them in a session of its own and without our environment; then it dies."""
    sleep = [sys.executable, "-c", "import time; time.sleep(3600)"]
    for options in ({}, {"start_new_session": True}, {"start_new_session": True, "env": {}}):
        record(data, subprocess.Popen(sleep, **options).pid)
    os.kill(os.getpid(), signal.SIGKILL)


def record(data, pid):
    if pid != os.getpid() or data.get("fault") == "self":
        Path(data["folder"], f"child.{pid}").touch()


AGENTS = [killed, exited, exited_well, segfaulted, blocked, looped, waited, stubborn, forked, printed]
for each in [*AGENTS, printed_without_end, unfit, left_children]:
    globals()[each.__name__] = faulty(each)


def synchronous(data, *, base_url, api_key):
    """A plain function, which nobody can cancel."""
    import httpx

    if data.get("fault"):
        while True:
            pass
    body = {"model": "any", "messages": [{"role": "user", "content": "How many?"}]}
    headers = {"authorization": f"Bearer {api_key}"}
    httpx.post(f"{base_url}/chat/completions", json=body, headers=headers).raise_for_status()
    return 1.0


async def stuck(data, *, base_url, api_key, http_client):
    """Ends, one way or the other, while a call of its runs in a thread for ever."""
    call = asyncio.ensure_future(asyncio.to_thread(time.sleep, 3600))
    if data.get("fault"):
        await call
    await asyncio.to_thread(str)
    return float("46" in await ask(base_url, api_key, http_client))


async def stuck_among_others(data, *, base_url, api_key, http_client):
    """One ends at once, and leaves a call behind; the others take long enough to see what becomes of that."""
    if data.get("fault"):
        asyncio.ensure_future(asyncio.to_thread(time.sleep, 3600))  # noqa: RUF006
        await asyncio.sleep(0.2)
        return 0.5
    await asyncio.sleep(3.0)
    return float("46" in await ask(base_url, api_key, http_client))
