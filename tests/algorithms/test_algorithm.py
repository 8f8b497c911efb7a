"""Naming an algorithm and its parts."""

from __future__ import annotations

import pytest
import torch
from tests.algorithms.algorithms import build, grpo

from agentrl.algorithms.filters import NoFilter, ZeroVarianceFilter
from agentrl.algorithms.loss import ClipObjective, RatioCorrection, TruncatedCorrection
from agentrl.algorithms.normalisation import SequenceNormalisation, TokenNormalisation
from agentrl.errors import ConfigError
from agentrl.learner.contract import ObjectiveLoss


class Imitate:
    """An objective of one's own, named by where it is."""

    def __call__(self, terms):
        return ObjectiveLoss(-terms.logprob, torch.zeros_like(terms.logprob, dtype=torch.bool))


def test_grpo_is_a_choice_of_parts():
    algorithm = grpo()
    assert isinstance(algorithm.objective, ClipObjective)
    assert isinstance(algorithm.normalisation, SequenceNormalisation)
    assert isinstance(algorithm.correction, RatioCorrection)
    assert isinstance(algorithm.filter, NoFilter)


def test_a_slot_is_overridden_by_name_with_or_without_its_prefix():
    assert isinstance(grpo(normalisation="token").normalisation, TokenNormalisation)
    assert isinstance(grpo(normalisation={"name": "normalisation.token"}).normalisation, TokenNormalisation)
    assert isinstance(grpo(filter="zero_variance").filter, ZeroVarianceFilter)
    assert isinstance(grpo(correction={"name": "truncated", "cap": 5}).correction, TruncatedCorrection)


def test_a_slot_takes_an_object_by_reference():
    assert type(grpo(objective=f"{__file__}:Imitate").objective).__name__ == "Imitate"


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("grop", r"no algorithm 'grop' .*'grpo'"),
        ("objective.clip", r"'objective.clip' is a part of an algorithm, not an algorithm .*grpo"),
        ({"name": "grpo", "objectiv": {}}, r"algorithm.objectiv does not exist .*'objective'"),
        ({"name": "grpo", "objective": {"clip_hihg": 1}}, r"algorithm.objective.clip_hihg.*'clip_high'"),
        ({"name": "grpo", "objective": {"clip_high": "wide"}}, r"algorithm.objective.clip_high .*'wide'"),
        ({"name": "grpo", "objective": "clap"}, r"no algorithm part 'objective.clap' .*'objective.clip'"),
        ({"name": "grpo", "objective": "credit.tree"}, r"a part of another slot .*algorithm.credit"),
        ({"name": "grpo", "objective": 3}, r"algorithm.objective=3 is neither a name nor keys"),
        ({"name": "grpo", "objective": {"dual_clip": 0.5}}, r"algorithm.objective.dual_clip"),
        (
            {"name": "grpo", "correction": "truncated", "objective": {"clip_high": 0.3}},
            r"algorithm.objective.clip_high has no effect beside this algorithm.correction",
        ),
        ({"name": "grpo", "normalisation": "constant"}, r"algorithm.normalisation.length"),
        ({"name": "grpo", "normalisation": {"name": "token", "length": 3}}, r"algorithm.normalisation.length"),
    ],
)
def test_a_mistake_names_the_key_and_the_fix(algorithm, message):
    with pytest.raises(ConfigError, match=message) as raised:
        build(algorithm)
    assert "\n" not in str(raised.value)
