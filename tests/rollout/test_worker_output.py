"""The files that keep what agents print, and reading what they print."""

from __future__ import annotations

import asyncio

import pytest

from agentrl.gateway.session import new_credentials
from agentrl.rollout.subproc.output import Output, WorkerLog

KIB = 1024


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def log(tmp_path, warnings):
    log = WorkerLog(tmp_path / "workers" / "worker-1.log", 64 * KIB, warnings.append)
    log.open("process 12")
    yield log
    log.close()


def test_a_file_begins_with_its_process_and_goes_on_with_the_next(log, tmp_path, warnings):
    log.write(b"one\ntw")
    log.write(b"o\nthree")
    log.close()
    again = WorkerLog(tmp_path / "workers" / "worker-1.log", 64 * KIB, warnings.append)
    again.open("process 13")
    again.close()
    lines = (tmp_path / "workers" / "worker-1.log").read_text().splitlines()
    assert [line[-len("process 12") :] for line in (lines[0], lines[4])] == ["process 12", "process 13"]
    assert lines[1:4] == ["one", "two", "three"]


@pytest.mark.parametrize("line", [b"x" * 99 + b"\n", b"x" * 40_000])
def test_two_files_of_the_size_are_kept_and_their_end_is_the_latest(log, tmp_path, line):
    for _ in range(1_000_000 // len(line)):
        log.write(line)
    log.write(b"\nlast\n")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "workers").iterdir()}
    assert set(sizes) == {"worker-1.log", "worker-1.log.1"}
    assert max(sizes.values()) <= 64 * KIB
    assert (tmp_path / "workers" / "worker-1.log").read_bytes().endswith(b"last\n")


@pytest.mark.parametrize("size", [1, 7, 8192])
def test_keys_of_the_gateway_are_redacted_however_they_arrive(log, tmp_path, size):
    credentials = new_credentials()
    printed = f"POST http://h/{credentials.capture}/v1 {credentials.key}\n".encode() * 20
    for start in range(0, len(printed), size):
        log.write(printed[start : start + size])
    kept = (tmp_path / "workers" / "worker-1.log").read_text()
    assert credentials.capture not in kept
    assert credentials.key not in kept
    assert kept.count(f"capture-{credentials.session}-…") == 20


def test_bytes_that_are_no_text_are_kept_as_they_are(log, tmp_path):
    log.write(b"\xff\xfe sk-agentrl-\n")
    assert (tmp_path / "workers" / "worker-1.log").read_bytes().endswith(b"\xff\xfe sk-agentrl-\n")


def test_a_file_that_cannot_be_written_is_said_once_and_stops_nobody(tmp_path, warnings):
    (tmp_path / "workers").touch()
    log = WorkerLog(tmp_path / "workers" / "worker-1.log", 64 * KIB, warnings.append)
    log.open("process 12")
    log.write(b"lost\n")
    log.close()
    assert len(warnings) == 1
    assert "no longer kept" in warnings[0]


def test_a_flood_is_told_once_and_then_dropped(log, tmp_path):
    floods = []

    async def scenario():
        output = Output(log, 1000, lambda: floods.append(True))
        output.data_received(b"a" * 600 + b"\n")
        output.allow()
        output.data_received(b"b" * 600 + b"\n")
        assert floods == []
        for _ in range(100):
            output.data_received(b"c" * 600 + b"\n")
        return output.last_lines()

    assert asyncio.run(scenario()).startswith("a")
    assert floods == [True]
    assert (tmp_path / "workers" / "worker-1.log").stat().st_size < 2500
