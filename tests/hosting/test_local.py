"""Hosts on this machine: real processes, which are asked, fail, are killed, and end with whoever has started them."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.hosting import hosted

from agentrl.errors import ConfigError, GatewayError, HostLostError, RunError
from agentrl.hosting.contract import HostSpec
from agentrl.hosting.local import LocalHost, LocalHosts
from agentrl.machine import usable_processors

KEPT = f"{hosted.__name__}:Kept"
PATIENCE = 60.0


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs") / "hosts" / "kept.log"


@pytest.fixture(scope="module")
def host(log: Path) -> Iterator[LocalHost]:
    """One that all tests ask which end none."""
    (host,) = LocalHosts().start([HostSpec("kept", KEPT, {"begins": "once"}, log=log)], patience=PATIENCE)
    yield host
    host.stop(10.0)


@pytest.fixture
def start() -> Iterator[Callable[..., LocalHost]]:
    started: list[LocalHost] = []

    def start(name: str = "a host", log: Path | None = None, **arguments: object) -> LocalHost:
        started.extend(LocalHosts().start([HostSpec(name, KEPT, arguments, log=log)], patience=PATIENCE))
        return started[-1]

    yield start
    for host in started:
        host.stop(0.0)


def is_gone(pid: int, within: float = 10.0) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_plain_methods_are_called_one_after_the_other_in_the_order_of_the_questions(host: LocalHost) -> None:
    slow, fast = host.ask("tell", "slow", wait=0.2), host.ask("tell", "fast")
    assert fast.result(PATIENCE)[-2:] == ["slow", "fast"]
    assert slow.result(PATIENCE)[-1] == "slow"
    assert host.ask("process").result(PATIENCE) != os.getpid()


def test_coroutine_methods_run_beside_each_other_and_beside_plain_ones(host: LocalHost) -> None:
    plain = host.ask("sleeps", 0.5)
    late, early = host.ask("waits", 0.3, "late"), host.ask("waits", 0.0, "early")
    done, _ = wait([plain, late, early], return_when="FIRST_COMPLETED")
    assert done == {early}
    assert late.result(PATIENCE) == "late"
    assert not plain.done()
    plain.result(PATIENCE)


def test_cancelling_ends_a_coroutine_and_nothing_else(host: LocalHost) -> None:
    waits, beside = host.ask("waits", 600.0, "the one"), host.ask("waits", 0.3, "the other")
    assert waits.cancel()
    assert beside.result(PATIENCE) == "the other"
    assert host.ask("tell", "after it").result(PATIENCE)[-2:] == ["the one was cancelled", "after it"]


def test_what_a_method_raises_is_raised_here_as_what_it_is(host: LocalHost) -> None:
    with pytest.raises(GatewayError, match=r"it is not there \(name another\)") as gateway:
        host.ask("raises", "ours").result(PATIENCE)
    assert (gateway.value.status, gateway.value.code) == (404, "not_found")
    with pytest.raises(ConfigError) as config:
        host.ask("raises", "config").result(PATIENCE)
    assert config.value.key == "training.steps"
    with pytest.raises(RunError, match="kept could not raises: LookupError: no such thing"):
        host.ask("raises", "theirs").result(PATIENCE)
    with pytest.raises(RunError, match="Kept has no method 'nothing'"):
        host.ask("nothing").result(PATIENCE)
    with pytest.raises(RunError, match=r"kept could not return what it has: .*lambda"):
        host.ask("unpicklable").result(PATIENCE)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        host.ask("tell", lambda: None)
    assert host.ask("tell", "goes on").result(PATIENCE)[-1] == "goes on"


@pytest.mark.parametrize("size", [0, 3, 1_000, 1_000_000])
def test_arrays_of_any_size_come_back_and_can_be_written_to(host: LocalHost, size: int) -> None:
    array = np.arange(size, dtype=np.float64)
    found = host.ask("doubled", array).result(PATIENCE)
    np.testing.assert_array_equal(found, 2 * array)
    found += 1.0
    np.testing.assert_array_equal(host.ask("doubled", array).result(PATIENCE), 2 * array)


def test_large_arrays_leave_nothing_open(host: LocalHost) -> None:
    array = np.ones(100_000)
    for _ in range(3):
        host.ask("doubled", array).result(PATIENCE)
    here, there = psutil.Process(), psutil.Process(host.ask("process").result(PATIENCE))
    before = here.num_fds(), there.num_fds()
    kept = [host.ask("doubled", array).result(PATIENCE) for _ in range(20)]
    assert here.num_fds() - before[0] == len(kept)  # An open map has its file.
    until = time.monotonic() + PATIENCE
    while there.num_fds() > before[1]:  # It lets go of an answer a moment after that has arrived.
        assert time.monotonic() < until
        time.sleep(0.02)
    del kept
    assert here.num_fds() == before[0]


def test_what_it_prints_is_in_its_log(host: LocalHost, log: Path) -> None:
    host.ask("process").result(PATIENCE)
    assert "a host prints" in log.read_text()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("exit", "ended with exit code 3 and no answer"),
        ("SIGKILL", "was ended by SIGKILL"),
        ("SIGSEGV", "was ended by SIGSEGV"),
    ],
)
def test_a_host_that_ends_is_named_with_how_it_ended_and_its_last_words(
    start: Callable[..., LocalHost], tmp_path: Path, how: str, told: str
) -> None:
    host = start("learner rank 1", log=tmp_path / "rank.log")
    child = host.ask("starts_child").result(PATIENCE)
    waits = host.ask("waits", 600.0, "never")
    asked = host.ask("ends", how)
    with pytest.raises(HostLostError, match="learner rank 1 on this machine") as lost:
        asked.result(PATIENCE)
    assert told in str(lost.value)
    assert ("its last words" if how != "SIGSEGV" else "it printed last") in str(lost.value)
    assert "rank.log" in str(lost.value)
    for later in (waits, host.ask("process")):
        with pytest.raises(HostLostError, match="learner rank 1"):
            later.result(PATIENCE)
    assert is_gone(child)


def test_an_answer_that_was_sent_before_the_end_counts(start: Callable[..., LocalHost]) -> None:
    host = start()
    told, asked = host.ask("tell", "done"), host.ask("ends", "exit")
    with pytest.raises(HostLostError):
        asked.result(PATIENCE)
    assert told.result(0)[-1] == "done"


def test_stopping_closes_the_object_and_one_that_goes_on_is_killed(
    start: Callable[..., LocalHost], tmp_path: Path
) -> None:
    closes, hangs = start(closing=str(tmp_path / "closed")), start()
    pids = [host.ask("process").result(PATIENCE) for host in (closes, hangs)]
    hangs.ask("sleeps", 600.0)
    closes.stop(30.0)
    assert (tmp_path / "closed").read_text() == "closed"
    hangs.stop(0.2)
    assert all(is_gone(pid, within=0.1) for pid in pids)
    closes.stop(30.0)
    with pytest.raises(HostLostError, match="was stopped"):
        closes.ask("process").result(PATIENCE)


def test_signals_of_the_terminal_do_not_reach_it(start: Callable[..., LocalHost]) -> None:
    host = start()
    pid = host.ask("process").result(PATIENCE)
    assert os.getpgid(pid) != os.getpgrp()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # As of a batch system, which tells every process.
        os.kill(pid, number)
        os.kill(psutil.Process(pid).ppid(), number)
    assert host.ask("tell", "goes on").result(PATIENCE)[-1] == "goes on"


def test_hosts_that_start_together_are_all_there_or_none_and_share_the_processors() -> None:
    hosts = LocalHosts().start([HostSpec(f"host {each}", KEPT) for each in range(2)], patience=PATIENCE)
    share = str(max(1, usable_processors() // 2))
    try:
        assert [host.ask("thread_count").result(PATIENCE) for host in hosts] == [(share, share)] * 2
    finally:
        for host in hosts:
            host.stop(10.0)
    before = set(psutil.Process().children(recursive=True))
    specs = [HostSpec("one", KEPT), HostSpec("two", KEPT, {"fails": True})]
    with pytest.raises(ConfigError, match=r"there is nothing to keep \(name something\)") as failed:
        LocalHosts().start(specs, patience=PATIENCE)
    assert failed.value.key == "training.processes"
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_start_that_takes_too_long_says_what_it_waits_for() -> None:
    with pytest.raises(RunError, match=r"waited 0.5 s for slow to start on this machine"):
        LocalHosts().start([HostSpec("slow", KEPT, {"sleeps": 600.0})], patience=0.5)


def test_a_start_that_is_given_up_ends_and_leaves_nothing() -> None:
    given_up, before = threading.Event(), set(psutil.Process().children(recursive=True))
    threading.Timer(0.3, given_up.set).start()
    with pytest.raises(RunError, match=r"slow was starting on this machine .* when that was given up"):
        LocalHosts().start([HostSpec("slow", KEPT, {"sleeps": 600.0})], patience=600.0, given_up=given_up)
    assert set(psutil.Process().children(recursive=True)) <= before


def test_one_that_stands_still_and_reads_nothing_is_stopped_all_the_same(start: Callable[..., LocalHost]) -> None:
    host = start()
    pid = host.ask("process").result(PATIENCE)
    os.kill(pid, signal.SIGSTOP)
    asking = threading.Thread(target=lambda: [host.ask("tell", "x" * 100_000) for _ in range(100)], daemon=True)
    asking.start()  # The connection is full before all are sent.
    asking.join(0.5)
    assert asking.is_alive()
    host.stop(0.2)
    assert is_gone(pid)
    asking.join(PATIENCE)
    assert not asking.is_alive()


@pytest.mark.parametrize(
    ("target", "told"), [("nowhere:Kept", "No module named 'nowhere'"), (f"{hosted.__name__}:Nobody", "Nobody")]
)
def test_a_target_that_is_not_there_is_named(target: str, told: str) -> None:
    with pytest.raises(RunError, match=rf"lost could not be made: .*{told}"):
        LocalHosts().start([HostSpec("lost", target)], patience=PATIENCE)


STARTS = f"""
import sys, time
from agentrl.hosting.contract import HostSpec
from agentrl.hosting.local import LocalHosts
(host,) = LocalHosts().start([HostSpec("kept", "{KEPT}")], patience=60.0)
print(host.ask("process").result(60), host.ask("starts_child").result(60), flush=True)
host.ask("sleeps", 600.0)
time.sleep(600)
"""


def test_hosts_end_with_a_process_that_is_killed_and_what_they_have_started_too() -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, env=environ)
    assert process.stdout is not None
    with process.stdout as told:
        pids = [int(pid) for pid in told.readline().split()]
        process.kill()
        process.wait(10)
    assert len(pids) == 2
    assert [is_gone(pid) for pid in pids] == [True, True]
