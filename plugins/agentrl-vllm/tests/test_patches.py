"""What is changed inside the processes of a vLLM server, and what is left alone where it is another vLLM."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from agentrl_vllm.patches import report_unrestricted_logprobs, stop_spinning

FIRST = "vllm.v1.sample.ops.topk_topp_sampler"
SECOND = "vllm.v1.worker.gpu.sample.sampler"


def known_as(monkeypatch: pytest.MonkeyPatch, name: str, **content: object) -> None:
    """Let ``name`` be a module that holds ``content``."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        package = ModuleType(".".join(parts[:count]))
        package.__path__ = []
        monkeypatch.setitem(sys.modules, package.__name__, package)
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


class Sampler:
    """As vLLM's, as far as it is patched."""

    def __init__(self, logprobs_mode: str) -> None:
        self.logprobs_mode = logprobs_mode

    def forward(self, logits, generators, k, p):
        return "sampled", "cut"


class Logits:
    def log_softmax(self, dim: int) -> str:
        return "unrestricted"


def test_logprobs_are_those_before_the_cut(monkeypatch):
    sampler = type("TopKTopPSampler", (Sampler,), {"__init__": Sampler.__init__})
    known_as(monkeypatch, FIRST, TopKTopPSampler=sampler)
    report_unrestricted_logprobs()
    assert sampler("processed_logprobs").forward(Logits(), {}, 5, None) == ("sampled", "unrestricted")
    assert sampler("processed_logprobs").forward(Logits(), {}, None, None) == ("sampled", "cut")
    assert sampler("raw_logprobs").forward(Logits(), {}, 5, None) == ("sampled", "cut")


@pytest.mark.parametrize("content", [{}, {"TopKTopPSampler": SimpleNamespace(other=1)}], ids=["gone", "another"])
def test_a_sampler_that_is_not_known_is_left_alone(content, monkeypatch):
    known_as(monkeypatch, FIRST, **content)
    report_unrestricted_logprobs()


def test_a_second_sampler_that_is_not_known_is_left_alone(monkeypatch):
    known_as(monkeypatch, SECOND, Sampler=type("Sampler", (), {}))
    report_unrestricted_logprobs()


def test_no_vllm_at_all_is_no_failure():
    report_unrestricted_logprobs()


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
