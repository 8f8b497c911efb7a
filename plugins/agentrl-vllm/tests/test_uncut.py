"""A vLLM whose samplers are others than ours serves all the same."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from agentrl_vllm.uncut import keep_uncut_logprobs

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
        return "uncut"


def test_logprobs_are_those_before_the_cut(monkeypatch):
    sampler = type("TopKTopPSampler", (Sampler,), {"__init__": Sampler.__init__})
    known_as(monkeypatch, FIRST, TopKTopPSampler=sampler)
    keep_uncut_logprobs()
    assert sampler("processed_logprobs").forward(Logits(), {}, 5, None) == ("sampled", "uncut")
    assert sampler("processed_logprobs").forward(Logits(), {}, None, None) == ("sampled", "cut")
    assert sampler("raw_logprobs").forward(Logits(), {}, 5, None) == ("sampled", "cut")


@pytest.mark.parametrize("content", [{}, {"TopKTopPSampler": SimpleNamespace(other=1)}], ids=["gone", "another"])
def test_a_sampler_that_is_not_known_is_left_alone(content, monkeypatch):
    known_as(monkeypatch, FIRST, **content)
    keep_uncut_logprobs()


def test_a_second_sampler_that_is_not_known_is_left_alone(monkeypatch):
    known_as(monkeypatch, SECOND, Sampler=type("Sampler", (), {}))
    keep_uncut_logprobs()


def test_no_vllm_at_all_is_no_failure():
    keep_uncut_logprobs()
