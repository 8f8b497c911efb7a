"""A learner over several processes: it learns what one process learns, whoever computes which pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.learner import rank_cases
from tests.learner.models import qwen3
from tests.learner.rank_processes import RankProcesses

EXACT = {"float64": (1e-12, 1e-9, 1e-12), "float32": (1e-5, 1e-5, 1e-6)}
"""By how much gradients (of each tensor's norm), weights and losses may differ."""


@pytest.fixture(scope="module")
def processes() -> Iterator[RankProcesses]:
    made = RankProcesses(4)
    yield made
    made.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, chat_tokenizer):
    path = tmp_path_factory.mktemp("model")
    qwen3(tied=True).float().save_pretrained(path)
    chat_tokenizer.save_pretrained(path)
    return path


def check(of_ranks, one, dtype):
    """Every rank has found what one process has."""
    gradient, weight, loss = EXACT[dtype]
    for rank, made in enumerate(of_ranks):
        assert isinstance(made, dict), f"rank {rank}: {made!r}"
        for found, expected in zip(made["gradients"], one["gradients"], strict=True):
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                assert float((found[name] - tensor).norm()) <= gradient * float(tensor.norm()), name
        for found, expected in zip(made["metrics"], one["metrics"], strict=True):
            assert found.keys() == expected.keys()
            assert found["policy/loss"] == pytest.approx(expected["policy/loss"], rel=loss, abs=loss)
            assert found == of_ranks[0]["metrics"][made["metrics"].index(found)]
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(made["weights"][name], tensor, rtol=0, atol=weight)
        for name in ("logprob", "entropy", "importance"):
            for found, expected in zip(made["terms"], one["terms"], strict=True):
                np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e3 * loss)
        np.testing.assert_allclose(made["scores"].logprob, one["scores"].logprob, rtol=0, atol=1e3 * loss)


@pytest.mark.parametrize(("size", "dtype"), [(2, "float64"), (4, "float64"), (4, "float32")])
def test_ten_batches_train_as_on_one_process(processes, folder, size, dtype):
    # AdamW makes a whole step of a gradient that is rounding alone: at a high rate that is what float32 would show.
    rate = 1e-2 if dtype == "float64" else 1e-5
    one = rank_cases.alone(folder, "grpo", dtype, {"learning_rate": rate})
    case = "tests.learner.rank_cases:train"
    check(processes.run(size, case, folder, "grpo", dtype, {"learning_rate": rate}), one, dtype)
