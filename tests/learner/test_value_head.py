"""The value head: its loss and gradient through the forest are those of separate rows, and its state goes on."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.algorithms.algorithms import build
from tests.algorithms.episodes import wandering_groups
from tests.learner.models import VOCABULARY, of_kind, qwen3, takes_forest
from tests.learner.reference import _attend_plainly, plain_rows, relative_difference

from agentrl.algorithms.batch import build_batch
from agentrl.config.training import TrainingSection
from agentrl.learner.contract import TrainBatch
from agentrl.learner.gradient import accumulate_gradient
from agentrl.learner.learner import Learner
from agentrl.learner.packing import pack
from agentrl.learner.policy import Policy
from agentrl.learner.value import ValueHead

EXACT = 1e-6
CLIP = 0.3


def ppo(**critic):
    return build({"name": "ppo", "critic": {"coefficient": 0.7, "clip": CLIP, **critic}}, updates=2)


def of_head(head):
    return {"weight": head.weight.grad.clone(), "bias": head.bias.grad.clone()}


def with_columns(batch: TrainBatch) -> TrainBatch:
    """Random values and returns, so that the clip matters to some, and no advantage."""
    source = np.random.default_rng(1)
    columns = {name: source.normal(size=len(batch.version)) for name in ("value", "return")}
    return replace(batch, advantage=np.zeros(len(batch.version)), extra=columns)


@pytest.fixture(params=["plain head", "scaled logits"])
def model(request):
    made = qwen3(window=5) if request.param == "plain head" else of_kind("granite", logits_scaling=4.0).double()
    return takes_forest(made)


@pytest.mark.parametrize("tokens_per_batch", [64, 8192])
def test_loss_and_gradient_are_those_of_separate_rows(model, tokens_per_batch):
    groups = wandering_groups(random.Random(11), VOCABULARY, calls=4)
    algorithm = ppo()
    batch = with_columns(build_batch(groups, algorithm)[0])
    head = ValueHead(model, TrainingSection(), 1.0)
    with torch.no_grad():
        head.weight.copy_(
            torch.randn(head.weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        )
        head.bias.fill_(0.3)
    policy = Policy(model)
    policy.value_head = head
    passes = pack(batch.paths, batch.targets, tokens_per_batch, forest=True)
    model.zero_grad()
    metrics = accumulate_gradient(policy, batch, passes, algorithm.loss).metrics
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    of_value, values = of_head(head), policy.score_paths(batch.targets, batch.paths, tokens_per_batch).value
    head.weight.grad = head.bias.grad = None
    model.zero_grad()
    _attend_plainly(model)

    # each completion alone with its history; the batch has the completions in another order
    key = {}
    for term in range(len(batch.version)):
        path, depth = batch.targets.path[term], batch.targets.depth[term]
        place = tuple(batch.paths[path][: depth + 1]), int(batch.targets.token[term])
        key.setdefault(place, []).append(term)
    total, errors = torch.zeros((), dtype=torch.float64), []
    for row in plain_rows(groups, build({"name": "ppo", "advantage": {"name": "group"}, "critic": None})):
        hidden = model(input_ids=torch.tensor([row.ids]), output_hidden_states=True).hidden_states[-1][0]
        for at in range(len(row.ids) - row.completion, len(row.ids)):
            term = key[tuple(row.ids[:at]), row.ids[at]].pop()
            value = hidden[at - 1] @ head.weight + head.bias
            assert values[term] == pytest.approx(float(value.detach()), rel=1e-9)
            before, target = (float(batch.extra[name][term]) for name in ("value", "return"))
            bounded = before + (value - before).clamp(-CLIP, CLIP)
            error = torch.maximum((value - target) ** 2, (bounded - target) ** 2) / 2
            errors.append(float(error.detach()))
            total = total + 0.7 * batch.weight[term] * error
    total.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    takes_forest(model)
    assert metrics["policy/loss"] == pytest.approx(float(total.detach()), rel=EXACT)
    assert metrics["value/loss"] == pytest.approx(sum(errors) / len(errors), rel=EXACT)
    assert len(errors) == len(batch.version)
    assert all(not found.pop(name).any() for name in set(found) - set(expected))  # the head of the vocabulary
    assert relative_difference(found, expected) < EXACT
    assert relative_difference(of_value, of_head(head)) < EXACT


@pytest.fixture
def folder(tmp_path):
    qwen3().float().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def learner_of(folder, algorithm, **settings):
    return Learner(folder, TrainingSection(learning_rate=1e-2, **settings), algorithm.loss, seed=0)


def test_a_head_that_was_saved_goes_on_to_the_bit(folder, tmp_path):
    batch = with_columns(build_batch(wandering_groups(random.Random(3), VOCABULARY), ppo())[0])
    whole = learner_of(folder, ppo())
    assert not whole.score(batch.targets, batch.paths).value.any()
    whole.step(batch)
    (tmp_path / "saved").mkdir()
    whole.save(tmp_path / "saved")
    whole.save_state(tmp_path / "saved")
    resumed = learner_of(tmp_path / "saved", ppo())
    resumed.load_state(tmp_path / "saved")
    made = [learner.step(batch).metrics for learner in (whole, resumed)]
    first, second = ({name: v for name, v in each.items() if "seconds" not in name} for each in made)
    assert first == second
    scores = [learner.score(batch.targets, batch.paths) for learner in (whole, resumed)]
    assert scores[0].value.any()
    assert np.array_equal(scores[0].value, scores[1].value)
    assert np.array_equal(scores[0].logprob, scores[1].logprob)
    again = learner_of(tmp_path / "saved", build("grpo"))  # a state with a head suits a learner without one
    again.load_state(tmp_path / "saved")


def test_the_head_learns_faster_than_the_policy_by_its_factor(folder):
    batch = with_columns(build_batch(wandering_groups(random.Random(3), VOCABULARY), ppo())[0])
    moved = []
    for factor in (1.0, 5.0):
        learner = learner_of(folder, ppo(learning_rate_factor=factor))
        learner.step(batch)
        moved.append(float(learner._value_head.weight.detach().abs().max()))
    assert moved == [pytest.approx(1e-2, rel=1e-3), pytest.approx(5e-2, rel=1e-3)]


def test_metrics_say_how_much_of_the_returns_the_values_explain(folder):
    batch = with_columns(build_batch(wandering_groups(random.Random(3), VOCABULARY), ppo())[0])
    target = batch.extra["return"]
    for value, explained in ((target, 1.0), (target * 0 + 5, 0.0), (target / 2, 0.75)):
        metrics = learner_of(folder, ppo()).step(replace(batch, extra={"value": value, "return": target})).metrics
        assert metrics["value/explained_variance"] == pytest.approx(explained, abs=1e-9)
        assert metrics["value/mean"] == pytest.approx(value.mean())
    constant = replace(batch, extra={"value": target, "return": target * 0})
    assert "value/explained_variance" not in learner_of(folder, ppo()).step(constant).metrics
