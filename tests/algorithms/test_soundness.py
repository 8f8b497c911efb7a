"""Parts that make no sense together are refused with the reason and the fix, and the fix is taken."""

from __future__ import annotations

import pytest
from tests.algorithms.algorithms import build

from agentrl.algorithms.building import build_algorithm
from agentrl.algorithms.contract import Objection
from agentrl.algorithms.corrections import RatioCorrection
from agentrl.algorithms.soundness import check_groups
from agentrl.config.models import Config
from agentrl.errors import ConfigError
from agentrl.plugins import Plugins

OF_TOKENS = ["truncated", "masked", "icepop", "decoupled", {"name": "decoupled", "proximal": "interpolated"}]
OF_CALLS = [{"name": "truncated", "level": "sequence"}, {"name": "masked", "level": "sequence"}]
AT_THE_LEARNER = [*OF_TOKENS[:4], *OF_CALLS]
INTERPOLATED = OF_TOKENS[4]
CORRECTIONS = ["ratio", *OF_TOKENS, *OF_CALLS]
OBJECTIVES = {
    "clip": CORRECTIONS,
    "gspo": ["ratio", *OF_CALLS],
    "cispo": ["ratio"],
    "dppo": ["ratio"],
    "reinforce": AT_THE_LEARNER,
    "likelihood": [],
}
"""What each objective goes with when an algorithm trains by reward."""
REASONS = {
    "gspo": "GSPO takes the ratio of a whole call",
    "cispo": "CISPO is a truncated importance weight itself",
    "dppo": "DPPO's trust region lies around the policy that sampled",
    "reinforce": "REINFORCE takes no ratio",
    "likelihood": "it imitates every episode",
}


@pytest.mark.parametrize("correction", CORRECTIONS, ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_and_corrections(objective, correction):
    chosen = {"name": "grpo", "objective": objective, "correction": correction}
    if correction in OBJECTIVES[objective]:
        build(chosen)
        return
    with pytest.raises(ConfigError, match=f"algorithm.objective=objective.{objective} makes no sense here: ") as raised:
        build(chosen)
    assert REASONS[objective] in str(raised.value)


ADVANTAGES = ["group", {"name": "group", "scale": "none"}, "leave_one_out", {"name": "batch", "baseline": "group"}]
OF_THE_STEP = ["batch", {"name": "batch", "scale": "none"}]


@pytest.mark.parametrize("advantage", [*ADVANTAGES, *OF_THE_STEP], ids=str)
def test_zero_variance_goes_with_what_compares_a_group(advantage):
    chosen = {"name": "dapo", "advantage": advantage}
    if advantage in ADVANTAGES:
        build(chosen)
        return
    with pytest.raises(
        ConfigError, match=r"algorithm.filter=filter.zero_variance makes no sense here: .*equal rewards"
    ):
        build(chosen)


SCALE, CLIP = {"name": "scale", "factor": 2}, {"name": "clip", "high": 1}
LENGTH = {"name": "over_long", "longest": 9, "margin": 3}


@pytest.mark.parametrize(
    ("shaping", "advantage", "takes"),
    [
        ([SCALE], "group", False),
        ([SCALE], "batch", False),
        ([CLIP, SCALE], "group", False),
        ([CLIP, SCALE, SCALE], "group", False),
        ([SCALE, CLIP], "group", True),
        ([SCALE, LENGTH], "group", True),
        ([SCALE], {"name": "group", "scale": "none"}, True),
        ([SCALE], "leave_one_out", True),
        ([LENGTH], "group", True),
    ],
)
def test_a_scale_that_is_divided_out_again(shaping, advantage, takes):
    chosen = {"name": "grpo", "shaping": shaping, "advantage": advantage}
    if takes:
        assert len(build(chosen).shaping) == len(shaping)
        return
    with pytest.raises(ConfigError, match=r"algorithm.shaping=shaping.scale makes no sense here: .*standard deviation"):
        build(chosen)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"name": "grpo", "advantage": "gae"}, "asks a value head, and without algorithm.critic there is none"),
        ({"name": "ppo", "critic": None}, "asks a value head, and without algorithm.critic there is none"),
        ({"name": "ppo", "advantage": "group"}, "algorithm.critic trains a value head that this .* never asks"),
        ({"name": "grpo", "critic": "clip"}, "algorithm.critic trains a value head that this .* never asks"),
        ({"name": "ppo", "credit": "call"}, "algorithm.credit=credit.call makes no sense here: a critic learns"),
        ({"name": "ppo", "filter": "zero_variance"}, "algorithm.filter=filter.zero_variance makes no sense here"),
        ({"name": "dapo", "filter": ["none", "zero_variance"]}, "algorithm.filter=filter.none makes no sense here"),
        ({"name": "rloo", "objective": {"clip_low": 0.1}}, r"algorithm.objective.clip_low"),
        ({"name": "gspo", "objective": {"dual_clip": 2}}, r"algorithm.objective.dual_clip"),
        ({"name": "dppo", "objective": {"clip_high": 0.3}}, r"algorithm.objective.clip_high"),
        ({"name": "grpo", "correction": "masked", "objective": {"clip_low": 0.3}}, "clip_low has no effect beside"),
        ({"name": "grpo", "correction": "decoupled", "objective": {"dual_clip": 4}}, "dual_clip has no effect beside"),
        ({"name": "gspo", "correction": OF_CALLS[0], "objective": {"clip_high": 0.1}}, "clip_high has no effect"),
        ({"name": "grpo", "filter": {"turns": True}}, "algorithm.filter=.* is neither a name nor keys"),
        ({"name": "grpo", "filter": 3}, "algorithm.filter=3"),
        ({"name": "grpo", "objective": None}, "algorithm.objective is null"),
    ],
    ids=str,
)
def test_what_else_contradicts_itself(chosen, message):
    with pytest.raises(ConfigError, match=message) as raised:
        build(chosen)
    assert str(raised.value).rstrip().endswith((")", "?"))  # the fix
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "chosen",
    [
        {"name": "grpo", "correction": INTERPOLATED, "objective": {"clip_low": 0.1}},
        {"name": "dapo", "filter": {"name": "zero_variance"}},
        {"name": "dapo", "filter": None},
        {"name": "dapo", "filter": []},
        {"name": "dapo", "filter": "over_long"},
        {"name": "dapo", "filter": ["zero_variance", "over_long"], "shaping": LENGTH},
        {"name": "grpo", "credit": "length_neutral", "normalisation": "constant"},
        {"name": "ppo", "credit": "length_neutral"},
    ],
    ids=str,
)
def test_what_makes_sense_is_taken(chosen):
    build(chosen)


@pytest.mark.parametrize("correction", ["truncated", "masked", "decoupled"])
def test_with_several_updates_a_step_the_clip_has_an_effect(correction):
    chosen = {"name": "grpo", "correction": correction, "objective": {"clip_low": 0.3}}
    config = Config.model_validate({"agent": "math", "algorithm": chosen})
    assert build_algorithm(Plugins(), config.algorithm, updates=2).updates == 2
    with pytest.raises(ConfigError, match="clip_low has no effect beside"):
        build_algorithm(Plugins(), config.algorithm)


class Particular(RatioCorrection):
    """A part of one's own that takes no other normalisation than by tokens."""

    def objection(self, algorithm):
        if type(algorithm.normalisation).__name__ == "TokenNormalisation":
            return None
        return Objection("it wants tokens", "set algorithm.normalisation=token")


def test_a_part_of_ones_own_says_what_it_does_not_go_with():
    chosen = {"name": "grpo", "correction": f"{__file__}:Particular"}
    build({**chosen, "normalisation": "token"})
    with pytest.raises(ConfigError, match=r"it wants tokens \(set algorithm.normalisation=token\)"):
        build(chosen)


def test_an_algorithm_of_another_command_says_so():
    assert build("sft").command == "sft"
    assert build("grpo").command == "train"


def test_what_takes_no_reward_is_no_advantage_of_training():
    with pytest.raises(ConfigError, match=r"algorithm.advantage=advantage.one makes no sense here: .*agentrl sft"):
        build({"name": "grpo", "advantage": "one"})
    build("sft")


def test_a_discount_of_rewards_has_no_effect_beside_a_teacher():
    teacher, credit = {"model": "tiny"}, {"name": "tree", "discount": 0.9}
    with pytest.raises(ConfigError, match=r"algorithm.credit.discount has no effect beside this algorithm.advantage"):
        build({"name": "distill", "advantage": teacher, "credit": credit})
    build({"name": "distill", "advantage": teacher, "credit": "tree"})


def test_a_key_whose_name_is_a_word_of_python_is_suggested_as_it_is_written():
    with pytest.raises(ConfigError, match=r"no key 'algorithm.advantage.lambda_' \(did you mean 'lambda'"):
        build({"name": "ppo", "advantage": {"lambda_": 0.5}})


@pytest.mark.parametrize("advantage", ADVANTAGES, ids=str)
def test_an_advantage_that_compares_a_group_is_refused_beside_groups_of_one(advantage):
    algorithm = build({"name": "dapo", "advantage": advantage})
    check_groups(algorithm, 2)
    with pytest.raises(ConfigError, match=r"rollout.group_size=1 leaves algorithm='dapo' nothing to learn from"):
        check_groups(algorithm, 1)


def test_what_compares_a_step_or_nothing_takes_groups_of_one():
    for name in ("reinforce++", "ppo"):
        check_groups(build(name), 1)
