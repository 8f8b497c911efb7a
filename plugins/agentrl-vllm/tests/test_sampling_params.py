"""What vLLM is told of how to sample, and what it is not asked for."""

from __future__ import annotations

import pytest

from agentrl.errors import UnsupportedSampling
from agentrl.inference.contract import Capabilities, Sampling
from agentrl_vllm.sampling import sampling_params

ALL = Capabilities(2, 1).sampling


def test_every_field_is_told() -> None:
    sampling = Sampling(0.7, 0.9, 5, 12, 34, ("\n",), frozenset({9, 2}), top_logprobs=3)
    params = sampling_params(sampling, 100, ALL)
    assert params == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 34,
        "max_tokens": 12,
        "stop": ["\n"],
        "skip_special_tokens": False,
        "stop_token_ids": [2, 9],
        "ignore_eos": True,
        "logprobs": 4,
        "detokenize": True,
    }


def test_the_context_bounds_the_completion() -> None:
    assert sampling_params(Sampling(), 7, ALL)["max_tokens"] == 7
    assert sampling_params(Sampling(max_tokens=9), 7, ALL)["max_tokens"] == 7
    assert sampling_params(Sampling(max_tokens=3), 7, ALL)["max_tokens"] == 3


def test_text_is_made_only_to_look_for_stop_strings_in_it() -> None:
    assert sampling_params(Sampling(), 7, ALL)["detokenize"] is False


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_a_temperature_that_vllm_would_change_or_refuse_is_refused(temperature: float) -> None:
    with pytest.raises(UnsupportedSampling, match=f"not at {temperature:g}"):
        sampling_params(Sampling(temperature), 7, ALL)


@pytest.mark.parametrize("field", [{"top_p": 0.5}, {"top_k": 3}, {"stop": ("x",)}, {"top_logprobs": 2}])
def test_a_field_that_the_servers_do_not_honour_is_refused(field: dict[str, object]) -> None:
    (name,) = field
    with pytest.raises(UnsupportedSampling, match=name):
        sampling_params(Sampling(**field), 7, ALL - {name})  # type: ignore[arg-type]
    sampling_params(Sampling(), 7, ALL - {name})
