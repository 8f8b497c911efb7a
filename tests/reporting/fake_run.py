"""A run as reporters hear of it, and one to look at: ``python tests/reporting/fake_run.py [SECONDS]``."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agentrl.reporting.contract import Reporter
from agentrl.reporting.plain import final_lines
from agentrl.reporting.reporter import default_reporter
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.runs.contract import RunInfo, Summary

STEPS = 20
RUN = RunInfo("math", Path("runs/math"), "math", "tiny", STEPS, 64, "arithmetic", "arithmetic-heldout")
SUMMARY = Summary("completed", STEPS, 1344, 54_000, 42.0, 0.061, 0.95, 0.07, 0.99, "runs/math/checkpoints/step-000020")


def drive(reporter: Reporter, passes: Callable[[float], None], steps: int = STEPS) -> None:
    """Report ``steps`` steps; ``passes`` lets a share of a second go by."""
    reporter.activity_started("loading the model")
    passes(1.0)
    reporter.run_started(RUN)
    _evaluate(reporter, passes, 0)
    for step in range(1, steps + 1):
        _roll_out(reporter, passes, "rolling out", 64)
        reporter.activity_started("learning")
        passes(0.4)
        reporter.step_finished(
            step,
            {
                "reward/mean": _reward(step),
                "rollout/episodes": 64,
                "tokens/completion": 2624,
                "seconds/rollout": 0.6,
                "seconds/learner": 0.4,
                "seconds/step": 1.0,
            },
        )
        if step % 10 == 0:
            _evaluate(reporter, passes, step)
    reporter.activity_started("saving a checkpoint")
    passes(1.0)
    reporter.run_finished(SUMMARY)


def _evaluate(reporter: Reporter, passes: Callable[[float], None], step: int) -> None:
    _roll_out(reporter, passes, "evaluating", 256)
    reward = _reward(step)
    reporter.evaluation_finished(step, {"evaluation/reward": reward, "evaluation/reward_greedy": min(1, 1.1 * reward)})


def _roll_out(reporter: Reporter, passes: Callable[[float], None], name: str, episodes: int) -> None:
    reporter.activity_started(name, episodes)
    for sample in range(episodes):
        passes(0.6 / 64)
        reporter.episode_finished(Episode(EpisodeKey("train", 0, 0, sample), {}, "rewarded", 1.0))


def _reward(step: int) -> float:
    return 0.05 + 0.9 / (1 + math.exp((8 - step) / 3))


if __name__ == "__main__":
    display = default_reporter()
    pace = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    try:
        drive(display, lambda seconds: time.sleep(seconds * pace))
    finally:
        display.close()
    print(*final_lines(SUMMARY, "agentrl eval --checkpoint runs/math"), sep="\n")
