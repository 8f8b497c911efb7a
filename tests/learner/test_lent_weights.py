"""Weights while somebody has them: what an engine takes and is held against, until they are given back."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import groups_of_one_turn
from tests.learner.models import VOCABULARY, gemma3, of_kind, qwen3

from agentrl.algorithms.batch import build_batch
from agentrl.config.training import TrainingSection
from agentrl.learner.contract import Targets
from agentrl.learner.learner import Learner
from agentrl.learner.lending import LentWeights
from agentrl.learner.policy import Policy
from agentrl.learner.probe import probe_forest

IDS = [index * 7 % VOCABULARY for index in range(40)]
GRPO = grpo()
STATES = {"num_heads": 4, "head_dim": 16, "state_size": 4, "n_groups": 1}


def lent(model, folder):
    return LentWeights(Policy(model), 3, folder, borrower="a test")


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
    found = lent(model, tmp_path).logprobs(IDS)
    assert found == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("ids", [[], [5]])
def test_nothing_is_predicted_of_a_single_token(ids, tmp_path):
    assert list(lent(qwen3(), tmp_path).logprobs(ids)) == []


def test_logprobs_leave_no_gradient(tmp_path):
    model = qwen3()
    lent(model, tmp_path).logprobs(IDS)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.fixture
def learner(tmp_path, chat_tokenizer):
    qwen3().float().save_pretrained(tmp_path)
    chat_tokenizer.save_pretrained(tmp_path)
    return Learner(tmp_path, TrainingSection(learning_rate=1e-2), GRPO.loss, seed=0)


def batch():
    groups = groups_of_one_turn(random.Random(0), VOCABULARY, groups=2, size=3, prompt=6, longest=5)
    return build_batch(groups, GRPO)[0]


def test_no_step_changes_weights_that_somebody_has(learner, tmp_path):
    learner.save_state(tmp_path)
    engine, probe = learner.lend("the engine"), learner.lend("a probe")
    before = {name: tensor.clone() for name, tensor in engine.tensors()}
    for change in (lambda: learner.step(batch()), lambda: learner.load_state(tmp_path)):
        with pytest.raises(RuntimeError, match="version 0 are lent to the engine, a probe: give them back first"):
            change()
    probe.give_back()
    with pytest.raises(RuntimeError, match="are lent to the engine: give"):
        learner.step(batch())
    assert learner.version == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.tensors())
    engine.give_back()
    engine.give_back()
    assert learner.step(batch()).metrics["policy/updated"] == 1.0


def test_a_block_gives_them_back_however_it_ends(learner):
    with pytest.raises(ZeroDivisionError), learner.lend("the engine"):
        1 / 0  # noqa: B018
    learner.step(batch())
    with learner.lend("the engine") as weights:
        assert weights.version == 1
    learner.step(batch())


def test_weights_that_were_given_back_are_of_no_more_use(learner, tmp_path):
    with learner.lend("the engine") as weights:
        begun = weights.tensors()
        next(begun)
    assert weights.version == 0
    uses = (lambda: weights.logprobs(IDS), lambda: list(weights.tensors()), lambda: weights.save(tmp_path / "saved"))
    for use in uses:
        with pytest.raises(RuntimeError, match="the engine used the weights of version 0 after giving them back"):
            use()
    with pytest.raises(RuntimeError, match="after giving them back"):
        next(begun)
    assert not (tmp_path / "saved").exists()


def test_logprobs_of_the_learners_weights_are_its_scores(learner):
    count = len(IDS) - 1
    targets = Targets(np.zeros(count, dtype=np.int64), np.arange(count), np.array(IDS[1:]), np.ones(count))
    with learner.lend("the engine") as weights:
        assert weights.logprobs(IDS) == learner.score(targets, [np.array(IDS)]).logprob.tolist()
