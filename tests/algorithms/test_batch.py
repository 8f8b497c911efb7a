"""From groups to paths and loss terms: each trained token once, and nothing that no token needs."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import Recorder, chain, wander, wandering_groups

from agentrl.algorithms.batch import build_batch, cover
from agentrl.rollout.contract import Group
from agentrl.tokens.contract import Position

GRPO = grpo()


def sampled_spans(tree):
    return [index for index, span in enumerate(tree.spans) if span.sampled is not None]


def recorder(seed=0):
    return Recorder(random.Random(seed), 5)


@given(st.integers(0, 10_000), st.data())
def test_each_span_lies_once_on_a_path_with_its_own_history(seed, data):
    tree = wander(recorder(seed), [1, 2], calls=6).tree
    trained = [span for span in sampled_spans(tree) if data.draw(st.booleans())]
    found = []
    for path in cover(tree, trained):
        for span, start in path.spans:
            history = tree.path(Position(span, len(tree.spans[span].ids) - 1))
            assert path.ids[: len(history)].tolist() == history
            assert start == len(history) - len(tree.spans[span].ids) + 1
            found.append(span)
    assert sorted(found) == sorted(trained)


def test_a_conversation_is_one_path_without_its_last_token():
    tree = chain(recorder(), [1, 2, 3], turns=4).tree
    (path,) = cover(tree, sampled_spans(tree))
    last = sampled_spans(tree)[-1]
    assert path.ids.tolist() == tree.path(Position(last, len(tree.spans[last].ids)))[:-1]
    assert len(path.spans) == 4


def test_given_tokens_that_no_trained_token_follows_are_left_out():
    made = recorder()
    first = made.call([1, 2, 3], [4, 4])
    made.call([0, 0, 0, 0], [1, 1], after=first)
    (path,) = cover(made.tree, sampled_spans(made.tree)[:1])
    assert path.ids.tolist() == [1, 2, 3, 4]


def test_only_rewarded_episodes_have_terms():
    kept, rejected = recorder(1), recorder(2)
    kept.call([1, 2], [3, 3, 3])
    rejected.call([1, 2], [4, 4])
    batch, _ = build_batch([Group(0, (kept.episode(1.0), rejected.episode(None)))], GRPO)
    assert batch.targets.token.tolist() == [3, 3, 3]


def test_what_a_grammar_or_greedy_sampling_chose_is_history_but_not_trained():
    made = recorder()
    first = made.call([1, 2], [3, 3], constrained=True)
    second = made.call([1], [4, 4, 4], after=first, temperature=0.0)
    made.call([1], [2], after=second)
    batch, counts = build_batch([Group(0, (made.episode(1.0),))], GRPO)
    assert batch.targets.token.tolist() == [2]
    assert counts["tokens/excluded"] == 5
    assert batch.paths[0].tolist() == [1, 2, 3, 3, 1, 4, 4, 4, 1]


@given(st.integers(0, 10_000))
def test_terms_say_what_was_sampled_and_where(seed):
    batch, _ = build_batch(wandering_groups(random.Random(seed), 5), GRPO)
    targets = batch.targets
    for term in range(len(targets.token) - 1):
        if batch.call[term] == batch.call[term + 1]:  # so it is on the path, as what the next one follows
            assert batch.paths[targets.path[term]][targets.depth[term] + 1] == targets.token[term]
            assert targets.path[term] == targets.path[term + 1]
    assert np.isclose(batch.weight.sum(), 1.0) or len(targets.token) == 0
    assert len(batch.labels) == len(batch.paths)


def test_a_path_is_called_after_its_episode():
    made = recorder()
    made.call([1, 2], [3])
    batch, _ = build_batch([Group(0, (made.episode(1.0, sample=4),))], GRPO)
    assert batch.labels == ("episode train-0-0-4",)


def even_and_uneven():
    """A group whose episodes all earned the same, one in which they did not, and an empty one."""
    even, uneven = [], []
    for sample in range(3):
        made = recorder(sample)
        made.call([1, 2], [3, sample])
        even.append(made.episode(0.5, sample))
        uneven.append(made.episode(float(sample), sample))
    return [Group(0, tuple(even)), Group(1, tuple(uneven)), Group(2, ())]


def test_groups_without_a_difference_are_counted():
    batch, counts = build_batch(even_and_uneven(), GRPO)
    assert counts["groups/zero_variance"] == 2
    assert counts["groups/filtered"] == 0
    assert len(batch.targets.token) == 12


def test_a_filter_leaves_groups_out_of_the_batch_and_of_its_mean():
    groups = even_and_uneven()
    filtered, counts = build_batch(groups, grpo(filter="zero_variance"))
    alone, _ = build_batch(groups[1:2], GRPO)
    assert counts["groups/zero_variance"] == counts["groups/filtered"] == 2
    assert filtered.targets.token.tolist() == alone.targets.token.tolist()
    assert filtered.weight.tolist() == alone.weight.tolist()
    assert filtered.weight.sum() == pytest.approx(1.0)


def test_a_filter_that_keeps_nothing_makes_an_empty_batch():
    batch, counts = build_batch(even_and_uneven()[:1], grpo(filter="zero_variance"))
    assert (batch.paths, len(batch.weight), counts["groups/filtered"]) == ((), 0, 1)


def test_a_completion_without_a_prompt_cannot_be_trained():
    made = recorder()
    made.call([], [1, 2])
    with pytest.raises(ValueError, match="without a prompt"):
        build_batch([Group(0, (made.episode(1.0),))], GRPO)
