"""The rule of staleness: which groups may start, and which of the finished ones a step trains."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.rollout.oracle import trainable

from agentrl.rollout.staleness import Candidate, StalenessBound

NOTHING: Mapping[int, int] = {}


def test_synchronous_training_takes_a_steps_groups_at_once_and_starts_no_other_beside_them():
    bound = StalenessBound(max_staleness=0, per_step=2)
    assert [bound.may_start(outstanding) for outstanding in range(4)] == [True, True, False, False]
    assert bound.deadline(7) == 7
    assert bound.choose(7, [Candidate(4, 7)], {7: 1}) is None
    assert bound.choose(7, [Candidate(5, 7), Candidate(4, 7)], NOTHING) == (4, 5)


def test_what_has_to_be_trained_now_comes_before_lower_ordinals():
    bound = StalenessBound(max_staleness=1, per_step=2)
    finished = [Candidate(1, 5), Candidate(2, 5), Candidate(9, 4), Candidate(3, 5)]
    assert bound.choose(5, finished, NOTHING) == (1, 9)


def test_a_step_waits_for_a_group_that_no_later_step_may_train():
    bound = StalenessBound(max_staleness=1, per_step=1)
    assert bound.choose(4, [Candidate(1, 4)], {4: 1}) == (1,)
    assert bound.choose(4, [Candidate(1, 4)], {3: 1}) is None
    assert bound.choose(4, [Candidate(1, 4)], NOTHING) == (1,)


def test_a_running_group_takes_up_a_later_step_as_a_finished_one_does():
    bound = StalenessBound(max_staleness=2, per_step=1)
    finished = [Candidate(1, 5), Candidate(2, 4)]
    assert bound.choose(5, finished, NOTHING) == (1,)
    assert bound.choose(5, finished, {4: 1}) == (2,), "the step at version 6 is for the one that runs"


def test_a_group_without_tokens_is_never_due():
    bound = StalenessBound(max_staleness=0, per_step=1)
    assert bound.choose(9, [Candidate(1, None), Candidate(2, 9)], NOTHING) == (2,)
    assert bound.choose(9, [Candidate(1, None)], NOTHING) == (1,)


@pytest.mark.parametrize(("max_staleness", "per_step"), [(-1, 1), (0, 0)])
def test_a_bound_that_makes_no_sense_is_refused(max_staleness, per_step):
    with pytest.raises(ValueError, match="the staleness is 0 or more"):
        StalenessBound(max_staleness, per_step)


@st.composite
def states(draw: st.DrawFn) -> tuple[StalenessBound, int, list[Candidate], list[int]]:
    """A bound, a version, and groups finished and running, few enough to try everything."""
    bound = StalenessBound(draw(st.integers(0, 3)), draw(st.integers(1, 3)))
    version = draw(st.integers(3, 5))
    oldest = st.integers(version - bound.max_staleness, version)
    olds = draw(st.lists(oldest, max_size=min(7, bound.slots)))
    finished = draw(st.integers(0, len(olds)))
    ordinals = draw(st.permutations(range(len(olds))))
    return bound, version, [Candidate(*each) for each in zip(ordinals, olds[:finished], strict=False)], olds[finished:]


@given(states())
def test_a_step_waits_only_where_every_choice_would_leave_a_group_that_cannot_be_trained_in_time(state):
    bound, version, finished, running = state
    chosen = bound.choose(version, finished, Counter(running))
    left = {
        each: [old for ordinal, old in finished if ordinal not in each] + running
        for each in itertools.combinations(sorted(ordinal for ordinal, _ in finished), bound.per_step)
    }
    good = {each for each, olds in left.items() if trainable(bound, version + 1, olds)}
    if trainable(bound, version, [old for _, old in finished] + running):
        assert chosen in good if good else chosen is None


@given(states())
def test_a_start_is_refused_only_where_the_group_could_not_be_trained_in_time_with_the_others(state):
    bound, version, finished, running = state
    olds = [old for _, old in finished] + running
    if trainable(bound, version, olds):
        assert bound.may_start(len(olds)) == trainable(bound, version, [*olds, version])
