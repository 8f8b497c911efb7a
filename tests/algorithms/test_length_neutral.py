"""An agent that splits one answer into more turns gains nothing under the length-neutral credit.

What a sampled token pulls at the weights is its weight in the loss times its advantage, times the gradient of its own
log-probability. Splitting an answer changes none of its tokens, so nothing is gained exactly where that product stays
what it was for every token of the step, those of the other episodes included.
"""

from __future__ import annotations

import random
from ast import literal_eval
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.algorithms.algorithms import build
from tests.algorithms.episodes import Recorder
from tests.learner.models import qwen3
from tests.learner.reference import reference_gradient, relative_difference, sampled_by

from agentrl.algorithms.batch import build_batch
from agentrl.algorithms.credit import LengthNeutralCredit, TreeCredit
from agentrl.rollout.contract import Group

ALGORITHMS = [
    {"name": name, "credit": "length_neutral", "normalisation": normalisation}
    for name in ("grpo", "dr_grpo", "rloo", "reinforce++")
    for normalisation in ("token", "sequence", "constant")
]


@cache
def built_once(algorithm):
    return build(literal_eval(algorithm))


def answers(source, turns):
    """The answers of an episode: for each turn its tokens and its reward."""
    return [
        ([source.randrange(9) for _ in range(source.randint(1, 8))], source.choice([0.0, 0.5, 1.0]))
        for _ in range(turns)
    ]


def cut(source, tokens):
    """``tokens`` in pieces, each of at least one."""
    at = sorted(source.sample(range(1, len(tokens)), source.randint(0, len(tokens) - 1)))
    return [tokens[start:stop] for start, stop in zip([0, *at], [*at, len(tokens)], strict=True)]


def episode(turns, sample, *, split=None, every_part=True, between=(3,)):
    """A conversation of ``turns``; with ``split`` each answer in pieces, of which every one or the last is rewarded."""
    recorder, last, rewards = Recorder(random.Random(sample), 9), None, {}
    for tokens, reward in turns:
        pieces = [tokens] if split is None else cut(split, tokens)
        for number, piece in enumerate(pieces):
            last = recorder.call([1, 2] if number == 0 else between, piece, after=last)
            if every_part or number == len(pieces) - 1:
                rewards[last] = reward
    return recorder.episode(rewards, sample)


def pulls(algorithm, episodes):
    """What every sampled token pulls, episode by episode in the order they were sampled in."""
    batch, _ = build_batch([Group(0, tuple(episodes))], algorithm)
    made: dict[str, list[float]] = {}
    for path, product in zip(batch.targets.path, batch.weight * batch.advantage, strict=True):
        made.setdefault(batch.labels[path], []).append(product)
    return made


@st.composite
def groups(draw):
    """What every episode of a group answers, and how one of them is split."""
    source = random.Random(draw(st.integers(0, 10**6)))
    return [answers(source, source.randint(1, 4)) for _ in range(draw(st.integers(2, 4)))], source


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
@settings(max_examples=15)
@given(group=groups(), every_part=st.booleans())
def test_no_token_of_the_step_pulls_more_or_less(algorithm, group, every_part):
    turns, source = group
    built = built_once(str(algorithm))
    before = [episode(each, sample) for sample, each in enumerate(turns)]
    after = [episode(turns[0], 0, split=source, every_part=every_part), *before[1:]]
    expected, found = pulls(built, before), pulls(built, after)
    assert found.keys() == expected.keys()
    for label, products in expected.items():
        assert found[label] == pytest.approx(products, rel=1e-9, abs=1e-12)


@given(groups())
def test_a_sum_of_rewards_pays_for_every_further_turn(group):
    """The same split under ``credit.tree``: what is avoided here is there."""
    (turns, *_), source = group
    before, after = episode(turns, 0), episode(turns, 0, split=source)
    earned = [TreeCredit(TreeCredit.Settings())(each)["call-0"] for each in (before, after)]
    more = len(after.calls) > len(before.calls) and any(after.call_rewards[call.id] for call in after.calls)
    assert earned[1] >= earned[0]
    if more and all(reward for _, reward in turns):
        assert earned[1] > earned[0]
    neutral = [set(LengthNeutralCredit()(each).values()) for each in (before, after)]
    assert list(neutral[0]) == pytest.approx(list(neutral[1]))


def test_the_gradient_of_a_model_is_the_same_to_the_last_digits():
    """Pieces that follow each other without a word between them are the very same tokens to a model."""
    source, model = random.Random(3), qwen3()
    turns = [answers(source, 3) for _ in range(3)]
    before = [episode(each, sample) for sample, each in enumerate(turns)]
    after = [episode(turns[0], 0, split=source, between=()), *before[1:]]
    assert len(after[0].calls) > len(before[0].calls)
    for name in ("grpo", "dr_grpo", "rloo"):
        algorithm = build({"name": name, "credit": "length_neutral"})
        (_, whole), (_, split) = (
            reference_gradient(model, sampled_by(model, [Group(0, tuple(each))]), algorithm) for each in (before, after)
        )
        assert relative_difference(split, whole) < 1e-6


def test_a_call_without_a_reward_has_the_value_of_what_continues_it():
    recorder = Recorder(random.Random(0), 9)
    first = recorder.call([1], [2, 3])
    left, right = recorder.call([4], [5], after=first), recorder.call([6], [7], after=first)
    recorder.call([8], [8, 8, 8])
    earned = LengthNeutralCredit()(recorder.episode({left: 1.0, right: 0.0}))
    assert earned == dict.fromkeys([first, left, right], pytest.approx((2 * 0.5 + 1.0 + 0.0) / 4))


def test_an_episode_with_one_reward_gives_it_to_every_call():
    whole = episode([([1, 2], 1.0), ([3], 1.0)], 0)
    recorder = Recorder(random.Random(0), 9)
    recorder.call([1], [2])
    assert LengthNeutralCredit()(recorder.episode(0.25)) == {"call-0": 0.25}
    assert set(LengthNeutralCredit()(whole).values()) == {1.0}
