"""The last lines say what was learned, where it is, and how to see it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentrl.errors import RunError
from agentrl.reporting.plain import duration, final_lines, reward_text
from agentrl.runs.contract import Summary
from agentrl.runs.folder import read_summary

LEARNED = Summary(
    outcome="completed",
    steps=60,
    episodes=4352,
    tokens=78_233,
    seconds=125.4,
    reward_before=0.0612,
    reward_after=0.95,
    reward_before_greedy=0.1,
    reward_after_greedy=0.99,
    checkpoint="runs/math/checkpoints/step-000060",
)


def test_they_name_the_rewards_the_checkpoint_and_the_command() -> None:
    assert final_lines(LEARNED, "agentrl eval --checkpoint runs/math") == [
        "completed after 60 steps, 4,352 episodes, 78,233 tokens in 2:05 min",
        "held-out reward, sampled: 0.061 before, 0.950 after",
        "held-out reward, greedy: 0.100 before, 0.990 after",
        "checkpoint: runs/math/checkpoints/step-000060",
        "evaluate it: agentrl eval --checkpoint runs/math",
    ]


def test_what_was_not_measured_is_not_made_up() -> None:
    assert final_lines(Summary("interrupted", steps=1, seconds=3, reward_before=0.5), "agentrl eval") == [
        "interrupted after 1 step, 0 episodes, 0 tokens in 3.0 s",
        "held-out reward, sampled: 0.500 before, not measured after",
        "no checkpoint was saved",
    ]


def test_what_went_wrong_is_said_with_its_commonest_cause(tmp_path: Path) -> None:
    commonest = {"count": 40, "reason": "agent: ValueError: bad day", "episode": "train-1-2-3"}
    summary = Summary("completed", episodes=120, failed=48, reasons={"failed": [commonest]})
    line = "48 of 120 episodes failed; commonest: 40x agent: ValueError: bad day [train-1-2-3]"
    assert line in final_lines(summary)
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary.to_json()))
    assert read_summary(path) == summary


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (9.94, "9.9 s"), (59, "59 s"), (125, "2:05 min"), (3599.9, "1:00:00 h")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("text", ["{", "[]", "[1]", '{"outcome": "completed", "unknown": 1}', "{}"])
def test_a_file_that_is_no_summary_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(
        RunError, match=r"summary\.json is not a run's summary: .*\(restore it .* or delete it"
    ) as caught:
        read_summary(tmp_path / "summary.json")
    assert "argument" not in str(caught.value)


def test_a_run_without_a_summary_was_killed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no summary at .*was it killed"):
        read_summary(tmp_path / "summary.json")


@pytest.mark.parametrize(
    ("reward", "text"),
    [(0.95, "0.950"), (-123.45678, "-123.457"), (1e200 / 3, "3.333e+199"), (-2.5e6, "-2.5e+06")],
)
def test_rewards_of_any_size_take_a_few_characters(reward: float, text: str) -> None:
    assert reward_text(reward) == text
    assert f"sampled: {text} before" in final_lines(Summary("completed", reward_before=reward))[1]
