"""Naming an algorithm and its parts."""

from __future__ import annotations

import pytest
import torch
from tests.algorithms.algorithms import build, grpo
from tests.plugins.installing import install

from agentrl.algorithms.corrections import RatioCorrection, TruncatedCorrection
from agentrl.algorithms.filters import ZeroVarianceFilter
from agentrl.algorithms.normalisation import SequenceNormalisation, TokenNormalisation
from agentrl.algorithms.objectives import ClipObjective
from agentrl.errors import ConfigError, PluginError
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
    assert not algorithm.filter


def test_a_slot_is_overridden_by_name_with_or_without_its_prefix():
    assert isinstance(grpo(normalisation="token").normalisation, TokenNormalisation)
    assert isinstance(grpo(normalisation={"name": "normalisation.token"}).normalisation, TokenNormalisation)
    assert isinstance(grpo(filter="zero_variance").filter[0], ZeroVarianceFilter)
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
        ({"name": "grpo", "normalisation": {"name": "token", "length": 3}}, r"algorithm.normalisation.length"),
    ],
)
def test_a_mistake_names_the_key_and_the_fix(algorithm, message):
    with pytest.raises(ConfigError, match=message) as raised:
        build(algorithm)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (
            {"name": "grpo", "advantage": "old"},
            r"algorithm.advantage='advantage.old' is registered by agentrl-old 1.0 in the entry-point group "
            r"agentrl.algorithms, which holds presets only \(move it to the group agentrl.parts",
        ),
        (
            "advantage.old",
            r"algorithm='advantage.old' is registered in the entry-point group agentrl.algorithms and is no "
            r"agentrl.algorithms.contract.Preset \(.* a part of an algorithm in the group agentrl.parts",
        ),
    ],
)
def test_a_part_in_the_group_of_presets_is_told_where_it_belongs(algorithm, message, tmp_path, monkeypatch):
    groups = {"agentrl.algorithms": {"advantage.old": "old_parts:Old"}}
    install(tmp_path, "agentrl-old", groups, files={"old_parts.py": "class Old:\n    pass\n"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=message):
        build(algorithm)


def test_a_plugins_own_preset_and_part_make_an_algorithm(tmp_path, monkeypatch):
    code = """
from agentrl.algorithms.contract import Preset
from agentrl.algorithms.presets import grpo

mine = Preset(grpo.credit, {"name": "advantage.mine", "scale": 2}, grpo.normalisation, grpo.correction, grpo.objective)

class Mine:
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
"""
    groups = {"agentrl.algorithms": {"mine": "my_parts:mine"}, "agentrl.parts": {"advantage.mine": "my_parts:Mine"}}
    install(tmp_path, "agentrl-mine", groups, files={"my_parts.py": code})
    monkeypatch.syspath_prepend(tmp_path)
    assert build("mine").advantage.scale == 2.0
    assert not build("mine").filter
    assert build({"name": "mine", "advantage": {"scale": 5}}).advantage.scale == 5.0
