"""What may be compared: the episodes of one task, run by one agent in one phase."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentrl.rollout.contract import Episode, EpisodeKey, Group


def episode(sample, task=3, phase="train", agent=""):
    return Episode(EpisodeKey(phase, 5, task, sample), {}, "rewarded", 1.0, agent=agent)


def test_episodes_of_one_task_and_agent_are_a_group():
    group = Group(3, (episode(0, agent="math"), episode(1, agent="math"), episode(2)))  # One was read from a store.
    assert group.ordinal == 5


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (episode(1, task=4), r"episode train-5-4-1 of task 4 cannot be in a group of task 3"),
        (episode(1, agent="chess"), r"agents 'chess' and 'math': make a group of each"),
        (episode(1, phase="eval", agent="math"), r"phases 'eval' and 'train': make a group of each"),
    ],
)
def test_a_mixed_group_is_refused(other, told):
    with pytest.raises(ValueError, match=told):
        Group(3, (episode(0, agent="math"), other))
    with pytest.raises(ValueError, match=told):
        replace(Group(3, (episode(0, agent="math"),)), episodes=(episode(0, agent="math"), other))
