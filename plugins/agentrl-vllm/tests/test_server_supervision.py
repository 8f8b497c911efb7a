"""Nothing that a server starts outlives it, and no server outlives us, whatever ends which of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from servers import DEADLINE_S, FAKE, MARK, fake_server, nothing_left, processes, run

from agentrl_vllm.server import Server

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="strangers are found through /proc")


@contextmanager
def started(log: Path) -> Iterator[Server]:
    """A server with children: one of its session and, on Linux, one that has left it."""
    server = fake_server(log, family=True)
    run(server.start())
    try:
        yield server
    finally:
        server.kill()


def of_server(log: Path) -> psutil.Process:
    """The process that serves."""
    [serving] = [each for each in processes(log) if each.cmdline()[1:2] == [str(FAKE)]]
    return serving


def of_supervision(log: Path, name: str) -> psutil.Process:
    """The supervisor, or its guard."""
    both = [each for each in processes(log) if "supervisor.py" in " ".join(each.cmdline())]
    [found] = [each for each in both if (each.name() == "vllm-guard") is (name == "guard")]
    return found


def shared_memory(log: Path) -> Path:
    found = re.search(r"shared memory (\S+)", log.read_text())
    assert found is not None
    return Path("/dev/shm") / found[1]


def test_a_stopped_server_leaves_no_process_no_folder_and_no_shared_memory(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started(log) as server:
        # Server, its tracker, two children, supervisor and guard.
        assert len(processes(log)) == 6
        scratch = Path(of_server(log).environ()["TMPDIR"]).parent
        assert scratch.exists()
        memory = shared_memory(log)
        assert memory.exists()
        run(server.stop())
        assert processes(log) == []
        assert not server.alive
        assert not scratch.exists()
        assert not memory.exists()
        run(server.stop())


@pytest.mark.parametrize("victim", ["server", "supervisor", "guard"])
@ON_LINUX
def test_a_killed_process_takes_the_rest_with_it(tmp_path: Path, victim: str) -> None:
    log = tmp_path / "log"
    with started(log) as server:
        (of_server(log) if victim == "server" else of_supervision(log, victim)).kill()
        if victim == "guard":
            assert server.alive
            server.kill()
        assert nothing_left(log)
        run(server.stop())
        assert not server.alive


def test_how_a_server_ended_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started(log) as server:
        of_server(log).kill()
        assert nothing_left(log)
        run(server.stop())
        assert server.ending == "was ended by SIGKILL, as where memory runs out"


OURS = """
import asyncio, os, sys, time
from pathlib import Path
from servers import fake_server
import fcntl
shared = Path(sys.argv[1]).parent / "shared"
shared.mkdir()
lock = (shared / "lock").open("wb")
fcntl.flock(lock, fcntl.LOCK_EX)
server = fake_server(Path(sys.argv[1]), family=True, shared=shared)
asyncio.run(server.start())
{then}
print("started", flush=True)
for _ in range(6000):  # A signal just before a sleep is answered after it.
    time.sleep(0.1)
"""
FORKED = "os.fork() or time.sleep(600)"
"""A child of ours that goes on, with everything of ours still open."""


@contextmanager
def another_of_us(log: Path, then: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process that has started a server, and done ``then``."""
    ours = subprocess.Popen(
        [sys.executable, "-c", OURS.format(then=then), str(log)],
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield ours
    finally:
        with suppress(ProcessLookupError):
            os.killpg(ours.pid, signal.SIGKILL)
        ours.communicate()


@pytest.mark.parametrize("then", ["", FORKED], ids=["alone", "with a forked child"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@ON_LINUX
def test_whatever_ends_us_ends_the_server(tmp_path: Path, number: signal.Signals, then: str) -> None:
    log = tmp_path / "log"
    with another_of_us(log, then) as ours:
        assert ours.stdout is not None
        assert ours.stdout.readline() == b"started\n"
        assert (tmp_path / "shared").exists()
        ours.send_signal(number)
        ours.wait(DEADLINE_S)
        assert nothing_left(log)
        assert (tmp_path / "shared").exists() is (then == FORKED), "what is locked is in use"


@ON_LINUX
def test_nothing_is_left_where_we_and_the_supervisor_are_killed_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with another_of_us(log) as ours:
        assert ours.stdout is not None
        assert ours.stdout.readline() == b"started\n"
        of_supervision(log, "supervisor").kill()
        ours.kill()
        assert nothing_left(log)
        assert not (tmp_path / "shared").exists()


@ON_LINUX
def test_a_server_that_ends_leaves_what_we_share_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with another_of_us(log) as ours:
        assert ours.stdout is not None
        assert ours.stdout.readline() == b"started\n"
        of_server(log).kill()
        assert nothing_left(log)
        assert (tmp_path / "shared").exists()


def test_a_process_that_ends_without_stopping_its_server_takes_it_along(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with another_of_us(log, then="sys.exit(0)") as ours:
        assert ours.wait(DEADLINE_S) == 0
        assert nothing_left(log)


def test_a_server_inherits_no_terminal_and_no_interrupt(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started(log):
        serving = of_server(log)
        assert os.getsid(serving.pid) != os.getsid(0)
        assert MARK in serving.environ()
