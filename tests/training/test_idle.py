"""A step that changed nothing says why, once, and a run in which nothing was learned says it in the end."""

from __future__ import annotations

import math

import pytest

from agentrl.training.idle import IdleSteps

EQUAL = {
    "rollout/episodes": 4,
    "rollout/rejected": 0,
    "reward/mean": 0.5,
    "tokens/trained": 9.0,
    "tokens/excluded": 0.0,
    "policy/grad_norm": 0.0,
    "policy/updated": 0.0,
}
UPDATED = EQUAL | {"policy/grad_norm": 1.0, "policy/updated": 1.0}
REJECTED = {name: value for name, value in EQUAL.items() if name != "reward/mean"} | {"rollout/rejected": 4}
UNREWARDED = REJECTED | {"rollout/rejected": 3}
INFINITE = EQUAL | {"policy/grad_norm": math.inf}
UNTRAINED = EQUAL | {"tokens/trained": 0.0, "tokens/excluded": 9.0}


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (REJECTED, "step 2 changed nothing: the agent rejected every episode (return a reward"),
        (UNREWARDED, "step 2 changed nothing: no episode had a reward (see why"),
        (INFINITE, "step 2 changed nothing: the gradient was not a finite number (return smaller rewards"),
        (EQUAL | {"policy/loss": math.nan}, "step 2 changed nothing: the gradient was not a finite number"),
        (UNTRAINED, "step 2 changed nothing: none of the tokens could be trained"),
        (EQUAL, None),
        (UPDATED, None),
    ],
)
def test_a_step_says_why_it_changed_nothing_when_that_first_comes(metrics, said):
    idle = IdleSteps(steps=10)
    idle.add(1, UPDATED)
    warning = idle.add(2, metrics)
    assert warning is None if said is None else str(warning).startswith(said)
    assert idle.add(3, metrics) is None


@pytest.mark.parametrize(("steps", "at"), [(10, 5), (2, 2)])
def test_that_nobody_does_better_is_said_once_nothing_was_learned_for_a_while(steps, at):
    idle = IdleSteps(steps)
    warnings = [idle.add(step, EQUAL) for step in range(1, steps + 1)]
    assert [step for step, warning in enumerate(warnings, 1) if warning] == sorted({at, steps})
    warning = warnings[at - 1]
    assert warning.startswith(f"nothing was learned up to step {at}: in no group did one rewarded episode do better")
    assert "rollout.group_size" in warning


def test_several_reasons_are_counted():
    idle = IdleSteps(steps=3)
    for step, metrics in enumerate([REJECTED, EQUAL], 1):
        idle.add(step, metrics)
    warning = idle.add(3, EQUAL)
    assert "in 2, in no group did" in warning
    assert "in 1, the agent rejected every episode" in warning


def test_a_run_that_learned_says_nothing_of_single_steps():
    idle = IdleSteps(steps=3)
    assert [idle.add(step, metrics) for step, metrics in enumerate([UPDATED, EQUAL, EQUAL], 1)] == [None] * 3
