"""How far a run is: what the displays show."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.reporting.live import sparkline
from agentrl.reporting.plain import Progress
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.runs.contract import RunInfo

EPISODE = Episode(EpisodeKey("train", 1, 0, 0), {}, "rewarded", 1.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def progress(clock: Clock) -> Progress:
    progress = Progress(clock)
    progress.run_started(RunInfo("x", Path("runs/x"), "math", "tiny", 10, 64, "arithmetic"))
    return progress


def test_time_left_counts_down_between_steps_and_leaves_the_first_evaluation_out(
    progress: Progress, clock: Clock
) -> None:
    clock.now += 50
    progress.evaluation_finished(0, {"evaluation/reward": 0.1})
    assert progress.seconds_left is None
    for step in (1, 2):
        clock.now += 3
        progress.step_finished(step, {})
    assert progress.seconds_per_step == 3
    assert progress.seconds_left == 24
    clock.now += 2
    assert progress.seconds_left == 22
    clock.now += 1000
    assert progress.seconds_left == 0


def test_throughput_is_of_the_whole_step(progress: Progress) -> None:
    assert progress.throughput is None
    progress.step_finished(
        1, {"rollout/episodes": 64, "tokens/completion": 1000, "seconds/rollout": 1.5, "seconds/step": 2.0}
    )
    assert progress.throughput == (32, 500)
    assert progress.seconds_by_part == {"rollout": 1.5}


def test_an_activity_counts_its_own_episodes(progress: Progress, clock: Clock) -> None:
    progress.activity_started("evaluating", 256)
    progress.episode_finished(EPISODE)
    clock.now += 4
    activity = progress.activity
    assert activity is not None
    assert (activity.text, progress.elapsed(activity)) == ("evaluating, 1 of 256 episodes", 4)
    progress.activity_started("learning", None)
    progress.episode_finished(EPISODE)
    assert progress.activity is not None
    assert progress.activity.text == "learning"


def test_a_step_without_a_reward_has_none(progress: Progress) -> None:
    progress.step_finished(1, {"reward/mean": 0.5})
    progress.step_finished(2, {})
    assert progress.rewards == [0.5, None]


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 10, ""),
        ([None, None], 10, "  "),
        ([0.3], 10, "▅"),
        ([0.0, 1.0], 10, "▁█"),
        ([0.0, None, 1.0], 10, "▁ █"),
        ([0, 0, 0, 0, 8, 8, 8, 8], 2, "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([5, None], 0, "▅"),
        ([sys.float_info.max] * 3, 1, "▅"),
    ],
)
def test_a_sparkline_runs_from_the_least_to_the_greatest(values: list[float | None], width: int, line: str) -> None:
    assert sparkline(values, width) == line


@given(st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.integers(1, 60))
def test_a_sparkline_shows_every_value_in_the_width_it_has(values: list[float | None], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    assert set(line) <= set(" ▁▂▃▄▅▆▇█")
    if all(value is None for value in values):
        assert line.strip() == ""
