"""Every rule of learning health finds its trouble beyond its threshold, and nothing at it or in a healthy run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from agentrl.config.health import HealthRuleModel, HealthSection
from agentrl.health.findings import Finding, Health
from agentrl.health.rules import RULES, WINDOW

HEALTHY = {
    "policy/updated": 1.0,
    "policy/loss": 0.1,
    "policy/grad_norm": 1.0,
    "policy/entropy": 0.5,
    "policy/mismatch_kl": 1e-9,
    "policy/clip_fraction": 0.01,
    "staleness/mean": 0.0,
    "reward/mean": 0.5,
    "reward/std": 0.5,
    "rollout/episodes": 100,
    "rollout/rejected": 0,
    "rollout/calls": 100,
    "rollout/truncated": 0,
    "ledger/received": 100,
    "ledger/without_difference": 10,
    "ledger/stale": 0,
    "episode/tokens": 100,
    "tokens/trained": 100,
    "tokens/excluded": 0,
    "tokens/stale": 0,
    "seconds/step": 1.0,
    "seconds/rollout": 0.3,
    "seconds/held": 0.3,
}
DOCUMENTED = (Path(__file__).parents[2] / "docs" / "health.md").read_text(encoding="utf-8")


def told(rows: list[dict[str, float]], *, section: HealthSection | None = None, planned: int = 1000) -> list[Finding]:
    """What is found in steps with ``rows`` for metrics, the healthy ones where they say nothing."""
    health = Health(section or HealthSection(), planned, max_staleness=1)
    return [finding for step, row in enumerate(rows, 1) for finding in health.step(step, HEALTHY | row)]


def test_a_healthy_run_hears_nothing():
    assert told([{}] * 50) == []


# Of each rule: metrics at its threshold, metrics beyond it, and the metric and the value that the sentence names.
TABLE: dict[str, tuple[dict[str, float], dict[str, float], str]] = {
    "zero_variance": (
        {"ledger/without_difference": 90},
        {"ledger/without_difference": 91},
        "ledger/without_difference is 91% of the episodes of the last 5 steps, at a mean reward of 0.5",
    ),
    "entropy_collapse": (
        {"policy/entropy": 0.0500001},
        {"policy/entropy": 0.049},
        "policy/entropy is 0.049 nats a token over the last 5 steps, 10% of the 0.5 of the first 5",
    ),
    "length_growth": (
        {"episode/tokens": 200},
        {"episode/tokens": 201},
        "episode/tokens is 201 over the last 5 steps, 2.0 times the 100 of the first 5",
    ),
    "truncation": (
        {"rollout/truncated": 25},
        {"rollout/truncated": 26},
        "rollout/truncated is 26% of the completions of the last 5 steps",
    ),
    "mismatch_kl": (
        {"policy/mismatch_kl": 0.2},
        {"policy/mismatch_kl": 0.21},
        "policy/mismatch_kl is 0.21 nats a token over the last 5 steps (limit 0.2)",
    ),
    "clip_fraction": (
        {"policy/clip_fraction": 0.2},
        {"policy/clip_fraction": 0.21},
        "policy/clip_fraction is 21% over the last 5 steps",
    ),
    "staleness": ({"staleness/mean": 4.0}, {"staleness/mean": 4.1}, "staleness/mean is 4.1 versions"),
    "stale_share": ({"ledger/stale": 10}, {"ledger/stale": 11}, "ledger/stale is 11% of the episodes"),
    "stage_wait": (
        {"seconds/rollout": 0.75},
        {"seconds/rollout": 0.76},
        "seconds/rollout is 76% of seconds/step over the last 5 steps: the learner waits for rollouts",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_rule_finds_what_is_beyond_its_threshold_and_says_the_metric_and_its_value(name):
    at, beyond, said = TABLE[name]
    start = [{}] * WINDOW
    assert told(start + [at] * 20) == []
    (finding,) = told(start + [beyond] * 20)
    assert finding.rule == name
    assert finding.said.startswith(said)
    assert finding.fix
    assert str(finding).startswith(f"health: {name}: {said}")


@pytest.mark.parametrize("name", TABLE)
def test_a_threshold_of_the_config_takes_the_place_of_the_documented_one(name):
    _, beyond, _ = TABLE[name]
    rule = next(rule for rule in RULES if rule.name == name)
    for action in ("off", "stop"):
        section = HealthSection.model_validate({name: action})
        assert [each.action for each in told([{}] * WINDOW + [beyond] * 20, section=section)] == ["stop"][
            : action == "stop"
        ]
    factor = 0.5 if name == "entropy_collapse" else 2
    eased_to = rule.threshold * factor if rule.threshold < 0.5 or rule.threshold > 1 else 0.99
    eased = HealthSection.model_validate({name: HealthRuleModel(action="warn", threshold=eased_to)})
    assert told([{}] * WINDOW + [beyond] * 20, section=eased) == []


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        pytest.param([{"episode/tokens": 300, "reward/mean": 0.6}] * 20, "length_growth", id="length that pays"),
        pytest.param([{"tokens/stale": 12, "seconds/held": 0.1}] * 20, "stale_share", id="masked tokens"),
        pytest.param([{"seconds/held": 0.8}] * 20, "stage_wait", id="rollouts wait"),
        pytest.param([{"policy/entropy": 0.0}] * 20, "entropy_collapse", id="none left"),
    ],
)
def test_other_cases_of_rules(rows, name):
    found = [finding.rule for finding in told([{}] * WINDOW + rows)]
    assert found == ([] if name == "length_growth" else [name])


def test_stages_that_take_turns_by_design_wait_for_each_other():
    health = Health(HealthSection(), 1000, max_staleness=0)
    assert not any(health.step(step, HEALTHY | {"seconds/rollout": 0.99}) for step in range(1, 30))


def test_a_policy_that_was_certain_from_the_beginning_does_not_collapse():
    assert told([{"policy/entropy": 0.005}] * WINDOW + [{"policy/entropy": 1e-5}] * 20) == []


def test_one_odd_step_is_no_trouble():
    assert told([{}] * 10 + [{"policy/clip_fraction": 0.9}] + [{}] * 10) == []


def test_values_that_are_no_numbers_are_left_out_of_means():
    odd = {"policy/entropy": math.nan, "policy/mismatch_kl": math.inf}
    assert told([{}] * 10 + [odd] * 2 + [{}] * 10) == []


def evaluated(training: Callable[[int], float], held_out: Callable[[int], float]) -> list[Finding]:
    """What is found in 61 steps with an evaluation before the first and after every 20."""
    health = Health(HealthSection(), 61)
    found: list[Finding] = []
    for step in range(62):
        if step:
            found += health.step(step, HEALTHY | {"reward/mean": training(step)})
        if step % 20 == 0:
            health.evaluation(step, {"evaluation/reward": held_out(step), "evaluation/episodes": 256})
    return found + health.end()


@pytest.mark.parametrize(
    ("training", "held_out", "found"),
    [
        pytest.param(lambda step: 0.2 + step / 100, lambda step: 0.2 + step / 100, False, id="both rise"),
        pytest.param(lambda step: 0.2 + step / 100, lambda step: 0.2, True, id="only one rises"),
        pytest.param(lambda step: 0.2 + step / 100, lambda step: 0.4 - step / 200, True, id="one falls"),
        pytest.param(lambda step: 0.2 + 0.05 * (step % 2), lambda step: 0.2, False, id="noise"),
        pytest.param(lambda step: 0.2, lambda step: 0.4 - step / 200, False, id="only held-out falls"),
        pytest.param(lambda step: 0.2 + step / 100, lambda step: 1.0, False, id="held-out cannot rise"),
    ],
)
def test_a_reward_that_rises_while_held_out_does_not_is_found_once(training, held_out, found):
    rules = [finding.rule for finding in evaluated(training, held_out)]
    assert rules == ["reward_gap"] * found


def test_the_last_evaluation_is_judged_at_the_end_of_the_run():
    health = Health(HealthSection(), 40)
    for step in range(41):
        if step:
            assert not health.step(step, HEALTHY | {"reward/mean": 0.2 + step / 100})
        if step % 20 == 0:
            health.evaluation(step, {"evaluation/reward": 0.2, "evaluation/episodes": 256})
    (finding,) = health.end()
    assert finding.said.startswith("reward/mean rose from 0.")
    assert "between steps 0 and 40, while evaluation/reward went from 0.2 to 0.2" in finding.said


UPDATED = HEALTHY
EQUAL = HEALTHY | {"policy/updated": 0.0}
REJECTED = {name: value for name, value in EQUAL.items() if name != "reward/mean"} | {"rollout/rejected": 100}
UNREWARDED = REJECTED | {"rollout/rejected": 99}
OVER_LONG = EQUAL | {"ledger/over_long": 51}
INFINITE = EQUAL | {"policy/grad_norm": math.inf}
UNTRAINED = EQUAL | {"tokens/trained": 0.0, "tokens/excluded": 9.0}


def unchanged(rows: list[dict[str, float]], planned: int = 10) -> list[tuple[int, str]]:
    health = Health(HealthSection(), planned)
    found = [(step, finding) for step, row in enumerate(rows, 1) for finding in health.step(step, row)]
    return [(step, f"{finding.said} ({finding.fix})") for step, finding in found if finding.rule == "no_update"]


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (REJECTED, "step 2 changed nothing: the agent rejected every episode (return a reward"),
        (UNREWARDED, "step 2 changed nothing: no episode had a reward (see why"),
        (OVER_LONG, "step 2 changed nothing: most episodes were longer than training.tokens_per_batch"),
        (
            REJECTED | {"ledger/over_long": 51},
            "step 2 changed nothing: most episodes were longer than training.tokens_per_batch",
        ),
        (REJECTED | {"rollout/limited": 100}, "step 2 changed nothing: every episode ran into a limit, and"),
        (REJECTED | {"rollout/limited": 99}, "step 2 changed nothing: the agent rejected every episode"),
        (INFINITE, "step 2 changed nothing: the gradient was not a finite number (return smaller rewards"),
        (EQUAL | {"policy/loss": math.nan}, "step 2 changed nothing: the gradient was not a finite number"),
        (UNTRAINED, "step 2 changed nothing: none of the tokens could be trained"),
    ],
)
def test_a_step_says_why_it_changed_nothing_when_that_first_comes(metrics, said):
    ((step, found),) = unchanged([UPDATED, metrics, metrics, UPDATED, metrics])
    assert step == 2
    assert found.startswith(said)


@pytest.mark.parametrize(("planned", "at"), [(10, [5, 10]), (2, [2])])
def test_that_nobody_does_better_is_said_once_nothing_was_learned_for_a_while_and_in_the_end(planned, at):
    found = unchanged([EQUAL] * planned, planned)
    assert [step for step, _ in found] == at
    for step, said in found:
        assert said.startswith(f"nothing was learned up to step {step}: in no group did one rewarded episode do better")
        assert "rollout.group_size" in said


def test_several_reasons_for_learning_nothing_are_counted():
    *_, (step, said) = unchanged([REJECTED, EQUAL, EQUAL], planned=3)
    assert step == 3
    assert "in 2, in no group did" in said
    assert "in 1, the agent rejected every episode" in said


def test_a_run_that_learned_says_nothing_of_steps_without_a_difference():
    assert unchanged([UPDATED, EQUAL, EQUAL], planned=3) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_is_documented_with_its_metrics_and_its_threshold(rule):
    assert getattr(HealthSection(), rule.name).action in ("warn", "stop")
    row = next(line for line in DOCUMENTED.splitlines() if line.startswith(f"| `{rule.name}` "))
    assert rule.condition.format(threshold=f"{rule.threshold:g}") in row
    assert f"`{rule.metrics[0]}`" in row
    assert f"| {getattr(HealthSection(), rule.name).action} |" in row
    if rule.source:
        assert rule.source in DOCUMENTED


def test_no_key_of_the_section_lacks_a_rule():
    assert {name for name in HealthSection.model_fields if name != "most_rollbacks"} == {rule.name for rule in RULES}
