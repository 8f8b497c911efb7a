"""The meanings of metrics as programs read them, from the text that the documentation shows."""

from __future__ import annotations

import pytest

from agentrl.reporting.meanings import meaning_of, meanings, source


def test_every_row_of_every_table_is_read():
    rows = [line for line in source().splitlines() if line.startswith("| `")]
    assert len(meanings()) == len(rows) > 80
    assert all(each.names and each.text and each.topic for each in meanings())
    assert not [each for each in meanings() if "](" in each.text + each.healthy or "|" in each.text + each.healthy]


@pytest.mark.parametrize(
    ("metric", "topic", "unit", "begins"),
    [
        ("reward/mean", "Reward", "reward", "Mean over the step's rewarded episodes."),
        ("reward/parts/format", "Reward", "", "Mean of a part"),
        ("rollout/limits/context", "Rollout", "episodes", "The policy ran into a limit"),
        ("ledger/failed/agent", "Ledger", "episodes", "Something around the policy broke"),
        ("ledger/failed", "Ledger", "episodes", "Something around the policy broke"),
        ("seconds/rollout", "Time", "seconds", "For which the step waited"),
        ("staleness/max", "Tokens", "versions", "Age of the trained tokens"),
    ],
)
def test_a_metric_is_told_by_its_name_or_by_what_stands_for_it(metric: str, topic: str, unit: str, begins: str):
    found = meaning_of(metric)
    assert found is not None
    assert (found.topic, found.unit, found.text.startswith(begins)) == (topic, unit, True)


def test_nothing_is_made_up_for_a_metric_that_nobody_has_explained():
    assert meaning_of("of_a_plugin/loss") is None
    assert meaning_of("reward") is None


def test_a_metric_has_one_meaning():
    """Of two, a page would show the first, to runs of which it is not true."""
    names = [name for meaning in meanings() for name in meaning.names]
    assert sorted({name for name in names if names.count(name) > 1}) == []
