"""What an engine that takes the learner's weights is held against."""

from __future__ import annotations

import pytest
import torch
from tests.learner.models import VOCABULARY, gemma3, of_kind, qwen3

from agentrl.learner.probe import probe_forest
from agentrl.learner.weights import LearnerWeights

IDS = [index * 7 % VOCABULARY for index in range(40)]
STATES = {"num_heads": 4, "head_dim": 16, "state_size": 4, "n_groups": 1}


@pytest.mark.parametrize(
    "build",
    [qwen3, lambda: qwen3(tied=True), lambda: qwen3(window=7), gemma3, lambda: of_kind("mamba2", **STATES).double()],
    ids=["untied", "tied", "with windows", "gemma", "recurrent, which takes no forest"],
)
@pytest.mark.parametrize("probed", [True, False], ids=["as a learner has it", "plain"])
def test_logprobs_are_those_of_a_plain_forward(build, probed, tmp_path):
    model = build().train(False)
    with torch.no_grad():
        logits = model(torch.tensor([IDS]), use_cache=False).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
    if probed:
        probe_forest(model)
    found = LearnerWeights(3, model, tmp_path).logprobs(IDS)
    assert found == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("ids", [[], [5]])
def test_nothing_is_predicted_of_a_single_token(ids, tmp_path):
    assert list(LearnerWeights(0, qwen3(), tmp_path).logprobs(ids)) == []


def test_logprobs_leave_no_gradient(tmp_path):
    model = qwen3()
    LearnerWeights(0, model, tmp_path).logprobs(IDS)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
