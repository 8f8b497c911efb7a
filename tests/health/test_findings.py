"""A trouble is told when it begins, once, and again only after it was over for a while."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from agentrl.config.health import HealthSection
from agentrl.health.findings import ROLLED_BACK, Health
from agentrl.health.rules import WINDOW
from agentrl.runs.contract import MetricsLine


def judging() -> Health:
    return Health(HealthSection(), planned=10_000)


def cut(share: float) -> dict[str, float]:
    return {"rollout/truncated": share * 100, "rollout/calls": 100, "policy/updated": 1}


def steps_of(shares: list[float]) -> list[int]:
    """The steps at which truncation is told of, where ``shares`` of the completions are cut."""
    health = judging()
    return [step for step, share in enumerate(shares, 1) for _ in health.step(step, cut(share))]


def test_a_trouble_is_told_once_however_long_it_lasts():
    assert len(steps_of([0.5] * 100)) == 1


def test_a_value_that_wavers_about_its_threshold_is_one_trouble():
    assert len(steps_of([0.26, 0.24, 0.23, 0.27] * 30)) == 1


def test_a_trouble_that_comes_back_after_a_calm_is_told_again():
    calm = [0.0] * (3 * WINDOW)
    assert len(steps_of([0.5] * 10 + calm + [0.5] * 10)) == 2


@given(st.lists(st.sampled_from([0.0, 0.15, 0.21, 0.26, 0.6]), max_size=120))
def test_two_tellings_are_always_a_calm_apart(shares):
    told = steps_of(shares)
    for before, after in itertools.pairwise(told):
        means = [sum(shares[step - WINDOW : step]) / WINDOW for step in range(before + 1, after)]
        assert (
            max(sum(1 for _ in run) for calm, run in itertools.groupby(means, lambda m: m < 0.2 + 1e-9) if calm)
            >= WINDOW
        )


def test_a_run_that_went_back_is_judged_by_what_was_before():
    health = judging()
    for step in range(1, 21):
        health.step(step, cut(0.0 if step <= 10 else 0.6))
    health.back_to(10)
    told = [step for step in range(22, 40) for _ in health.step(step, cut(0.6))]
    assert len(told) == 1
    assert told[0] > 22


def test_a_run_that_is_resumed_is_judged_as_if_it_had_never_stopped():
    shares = [0.5] * 8 + [0.0] * 12 + [0.5] * 8
    metrics = [cut(share) for share in shares]
    metrics[9][ROLLED_BACK] = 4
    for stopped in (3, 9, 12, 25):
        whole, resumed = judging(), judging()
        told = {}
        for step, row in enumerate(metrics, 1):
            told[step] = [str(finding) for finding in whole.step(step, row)]
            if ROLLED_BACK in row:
                whole.back_to(int(row[ROLLED_BACK]))
        resumed.recall(MetricsLine(step, 0.0, dict(row)) for step, row in enumerate(metrics[:stopped], 1))
        for step, row in enumerate(metrics[stopped:], stopped + 1):
            assert [str(finding) for finding in resumed.step(step, row)] == told[step]
            if ROLLED_BACK in row:
                resumed.back_to(int(row[ROLLED_BACK]))


def test_a_run_that_is_read_shows_what_was_said_while_it_went_on():
    shares = [0.5] * 8 + [0.0] * 12 + [0.5] * 8
    lines = [MetricsLine(step, float(step), cut(share)) for step, share in enumerate(shares, 1)]
    found = list(judging().review(lines))
    assert [step for step, _ in found] == steps_of(shares)
    assert {finding.rule for _, finding in found} == {"truncation"}
    assert all("rollout/truncated is" in finding.said for _, finding in found)
