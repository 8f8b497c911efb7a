"""The processes of a server on a CPU wait for each other without keeping the cores from others."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from test_uncut import known_as

from agentrl_vllm.unspun import stop_spinning

BROADCAST = "vllm.distributed.device_communicators.shm_broadcast"


def spin() -> None:
    """As vLLM waits."""


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What a vLLM waits by, which calls that by ``name``."""

    def waiting(*, is_cpu: bool, name: str = "sched_yield") -> Any:
        known_as(monkeypatch, "vllm.platforms", current_platform=SimpleNamespace(is_cpu=lambda: is_cpu))
        known_as(monkeypatch, BROADCAST, **{name: spin})
        stop_spinning()
        stop_spinning()
        return vars(sys.modules[BROADCAST])[name]

    return waiting


def test_on_a_cpu_they_sleep(waiting: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    waiting(is_cpu=True)()
    assert len(slept) == 1
    assert slept[0] > 0


def test_on_a_gpu_they_wait_as_they_did(waiting: Callable[..., Any]) -> None:
    assert waiting(is_cpu=False) is spin


def test_a_vllm_that_waits_otherwise_is_left_as_it_is(waiting: Callable[..., Any]) -> None:
    assert waiting(is_cpu=True, name="pause") is spin
