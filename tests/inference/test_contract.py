"""What a backend may not give is named before it is recorded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agentrl.inference.contract import Chunk, completion_fault

GOOD = Chunk((3, 4), (-0.5, 0.0), (2, 3), finish="length")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"logprobs": (-0.5, 1e-6)},
        {"ids": list(map(np.int64, (3, 4))), "logprobs": np.array([-0.5, -700.0], np.float32)},
    ],
)
def test_tokens_with_a_possible_logprob_and_version_each_have_no_fault(change):
    assert completion_fault(replace(GOOD, **change), vocabulary=5, versions=(2, 3)) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": (), "logprobs": (), "versions": ()}, "without a token id"),
        ({"logprobs": (-0.5,)}, "2 ids came with 1 logprobs"),
        ({"logprobs": (-0.5,) * 3}, "2 ids came with 3 logprobs"),
        ({"versions": ()}, "2 ids came with 0 policy versions"),
        ({"ids": (3, 5)}, "holds id 5, and the vocabulary has 5"),
        ({"ids": (3, -9)}, "holds id -9"),
        ({"ids": (3, 2**70)}, "whole numbers"),
        ({"ids": (3, 4.0)}, "whole numbers"),
        ({"versions": (2, "3")}, "whole numbers"),
        ({"logprobs": (-0.5, None)}, "logprobs numbers"),
        ({"logprobs": (-0.5, float("nan"))}, "the logprob nan"),
        ({"logprobs": (-0.5, float("-inf"))}, "the logprob -inf"),
        ({"logprobs": (float("inf"), float("-inf"))}, "the logprob inf"),
        ({"logprobs": (5.0, -0.1)}, "the logprob 5"),
        ({"versions": (1, 3)}, "under version 1 of the weights, and not under 2 to 3"),
        ({"versions": (2, 4)}, "under version 4 of the weights, and not under 2 to 3"),
        ({"finish": None}, "finish=None"),
        ({"finish": "cancelled"}, "finish='cancelled'"),
    ],
)
def test_every_fault_of_a_completion_is_named(change, said):
    assert said in completion_fault(replace(GOOD, **change), vocabulary=5, versions=(2, 3))


def test_without_bounds_any_id_and_version_that_can_be_stored_is_taken():
    assert completion_fault(replace(GOOD, ids=(3, 2**31 - 1), versions=(0, 10**6))) is None
    assert "holds id" in completion_fault(replace(GOOD, ids=(3, 2**31)))
