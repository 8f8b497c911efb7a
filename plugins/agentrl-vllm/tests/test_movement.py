"""Whether a server has followed the learner is told from rounding by what both say of one text."""

from __future__ import annotations

import random

from agentrl_vllm.movement import Scores, movement

TOKENS = 150


def test_a_server_that_moves_as_far_and_elsewhere_follows_in_part() -> None:
    """A part of the weights is old: along the learner's path it went most of the way, and aside from it as far."""
    chance = random.Random(1)
    none, learner = [0.0] * TOKENS, [chance.uniform(-0.5, 0.5) for _ in range(TOKENS)]
    server = [0.8 * move + chance.uniform(-0.5, 0.5) for move in learner]
    moved = movement(Scores(none, none), Scores(server, learner))
    assert moved.share > 0.5
    assert moved.is_partial
    assert not movement(Scores([0.2] * TOKENS, none), Scores(server, learner)).is_partial, "rounding hides that"


def test_a_learner_that_has_not_moved_says_nothing() -> None:
    none = [0.0] * TOKENS
    moved = movement(Scores(none, none), Scores([0.1] * TOKENS, none))
    assert not moved.is_missing
    assert not moved.is_partial
