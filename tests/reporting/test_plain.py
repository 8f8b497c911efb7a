"""Off a terminal progress is plain lines, few of them."""

from __future__ import annotations

import io
import re
import sys
from datetime import datetime
from pathlib import Path

import pytest

from agentrl.errors import RunError
from agentrl.reporting.plain import PlainReporter, RunLog, run_text
from agentrl.reporting.reporter import Reporters
from agentrl.rollout.contract import Episode, EpisodeKey, Failure
from agentrl.runs.contract import RunInfo
from agentrl.runs.ledger import Ledger

sys.path.insert(0, str(Path(__file__).parent))
from fake_run import drive


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def narrate(pace: float) -> list[str]:
    clock, stream = Clock(), io.StringIO()
    drive(PlainReporter(stream, interval=5.0, clock=clock), lambda seconds: clock.passes(pace * seconds))
    assert stream.getvalue().endswith("\n")
    return stream.getvalue().splitlines()


def test_a_quick_run_is_told_in_a_few_lines() -> None:
    assert narrate(0.1) == [
        "loading the model",
        "training math on tiny: tasks arithmetic, held out arithmetic-heldout, reward its own; "
        "20 steps of 64 episodes, in runs/math",
        "evaluating, 256 episodes",
        "after step 0: held-out reward 0.108 sampled, 0.119 greedy",
        "rolling out, 64 episodes",
        "learning",
        "step 1/20: reward 0.130, 64.0 episodes/s, 2,624 tokens/s, 0.10 s a step, 1.9 s left",
        "after step 10: held-out reward 0.645 sampled, 0.709 greedy",
        "step 20/20: reward 0.934, 64.0 episodes/s, 2,624 tokens/s, 0.11 s a step",
        "after step 20: held-out reward 0.934 sampled, 1.000 greedy",
        "saving a checkpoint",
    ]


def test_a_run_that_imitates_tells_its_loss() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = PlainReporter(stream, interval=5.0, clock=clock)
    reporter.run_started(
        RunInfo("taught", Path("runs/taught"), "sft", "tiny", 2, tasks="chats.jsonl", kind="imitation")
    )
    reporter.evaluation_finished(0, {"evaluation/loss": 2.0})
    for step in (1, 2):
        clock.passes(1.0)
        reporter.step_finished(step, {"policy/loss": 1.0 / step, "tokens/trained": 300.0, "seconds/step": 1.0})
    assert stream.getvalue().splitlines() == [
        "fine-tuning tiny on chats.jsonl: held out none; 2 steps, in runs/taught",
        "after step 0: held-out loss 2.000, perplexity 7.389",
        "step 1/2: loss 1.000, 300 trained tokens/s, 1.00 s a step, 1.0 s left",
        "step 2/2: loss 0.500, 300 trained tokens/s, 1.00 s a step",
    ]


def test_one_step_of_one_episode_is_told_in_the_singular() -> None:
    run = RunInfo("math", Path("runs/math"), "math", "tiny", 1, 1, "arithmetic")
    assert "; 1 step of 1 episode, in runs/math" in run_text(run)


def test_steps_are_told_of_when_it_is_time() -> None:
    steps = [line.split(":")[0] for line in narrate(1.0) if line.startswith("step")]
    assert steps == ["step 1/20", "step 6/20", "step 11/20", "step 17/20", "step 20/20"]


def test_a_long_activity_shows_life_and_every_long_step_is_told_of() -> None:
    lines = narrate(60.0)
    assert [line for line in lines if line.startswith("step")][1].startswith("step 2/20: reward 0.157")
    assert sum(line.startswith("step") for line in lines) == 20
    assert lines.count("learning") == 20
    assert "evaluating, 9 of 256 episodes" in lines
    assert "rolling out, 63 of 64 episodes" in lines


def test_notes_and_warnings_stay_on_their_line_without_control_characters() -> None:
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    reporter.warning("the agent\nblocked   the loop")
    reporter.note("a [bold]note[/bold]")
    assert stream.getvalue() == "warning: the agent blocked the loop\nnote: a [bold]note[/bold]\n"


def test_a_step_without_a_rewarded_episode_says_so() -> None:
    stream = io.StringIO()
    PlainReporter(stream).step_finished(3, {})
    assert stream.getvalue().startswith("step 3: no rewarded episode")


def failed(sample: int, phase: str = "train") -> Episode:
    failure = Failure("agent", f"ValueError: answer {sample}", "ValueError at x.py:1", "Traceback\n  at x.py")
    return Episode(EpisodeKey(phase, 1, 0, sample), {}, "failed", None, failure=failure)


def mistaken(sample: int) -> Episode:
    return Episode(EpisodeKey("train", 1, 0, sample), {}, "rewarded", 0.0, mistake="no such tool")


def narrate_failures(reporter: PlainReporter, clock: Clock) -> None:
    reporter.run_started(RunInfo("math", Path("runs/math"), "math", "tiny", 5, 4, "sums"))
    reporter.activity_started("evaluating", 1)
    reporter.episode_finished(failed(0, "eval"))
    reporter.evaluation_finished(0, {"evaluation/reward": 0.5})
    for step in range(1, 5):
        reporter.activity_started("rolling out", 4)
        for sample in range(2):
            reporter.episode_finished(failed(sample))
        reporter.episode_finished(mistaken(2))
        clock.passes(3.0)
        reporter.step_finished(step, {"reward/mean": 0.25})


def test_what_failed_is_told_with_its_commonest_cause_and_an_episode_that_shows_it() -> None:
    clock, stream = Clock(), io.StringIO()
    narrate_failures(PlainReporter(stream, interval=5.0, clock=clock), clock)
    assert [re.sub(r", [\d.]+ s a step.*", "", line) for line in stream.getvalue().splitlines()[1:]] == [
        "evaluating, 1 episodes",
        "after step 0: held-out reward 0.500 sampled",
        "1 of 1 episodes failed; commonest: 1x agent: ValueError: answer 0 [eval-1-0-0]",
        "rolling out, 4 episodes",
        "step 1/5: reward 0.250, 2 failed, 1 mistaken",
        "2 of 3 episodes failed; commonest: 2x agent: ValueError: answer 0 [train-1-0-0]",
        "1 of 3 episodes ended with a mistake of the policy; commonest: 1x no such tool [train-1-0-2]",
        "step 3/5: reward 0.250, 4 failed, 2 mistaken",
        "4 of 6 episodes failed; commonest: 4x agent: ValueError: answer 0 [train-1-0-0]",
    ]


def test_the_ledger_of_the_steps_since_the_last_line_is_told_unless_all_were_trained() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = PlainReporter(stream, interval=5.0, clock=clock)
    ledgers = [{"trained": 4}, {"trained": 3, "stale": 1}, {"without_difference": 2, "trained": 2}, {"trained": 4}]
    for step, fates in enumerate(ledgers, 1):
        clock.passes(3.0)
        reporter.step_finished(step, Ledger(4, fates).metrics())
    lines = [line for line in stream.getvalue().splitlines() if not line.startswith("step ")]
    assert lines == ["ledger of 8 episodes: 5 trained, 2 without difference, 1 stale"]


def test_a_long_activity_counts_its_failures() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = PlainReporter(stream, interval=5.0, clock=clock)
    reporter.activity_started("rolling out", 4)
    clock.passes(6.0)
    reporter.episode_finished(failed(0))
    assert stream.getvalue().splitlines()[-1] == "rolling out, 1 of 4 episodes, 1 failed"


def test_tracebacks_are_shown_to_those_who_ask_once_for_each_cause_and_always_kept_in_the_log(tmp_path: Path) -> None:
    clock, shown, hidden = Clock(), io.StringIO(), io.StringIO()
    log = RunLog(tmp_path / "run.log")
    narrate_failures(PlainReporter(shown, clock=clock, tracebacks=True), clock)
    narrate_failures(PlainReporter(hidden, clock=clock), clock)
    narrate_failures(log, clock)
    log.close()
    assert shown.getvalue().count("eval-1-0-0: agent: ValueError: answer 0\n    Traceback\n      at x.py\n") == 1
    assert shown.getvalue().count("Traceback") == 1
    assert "Traceback" not in hidden.getvalue()
    assert (tmp_path / "run.log").read_text().count("Traceback") == 1


def test_a_stream_that_is_gone_ends_the_narration_and_not_the_run() -> None:
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    stream.close()
    drive(reporter, lambda seconds: None)


def test_the_log_keeps_the_narration_with_its_times(tmp_path: Path) -> None:
    display = io.StringIO()
    log = RunLog(tmp_path / "run.log", now=lambda: datetime(2026, 11, 24, 9, 15))
    reporters = Reporters(PlainReporter(display), log)
    drive(reporters, lambda seconds: None)
    reporters.warning("a surrogate \ud800")
    reporters.close()
    reporters.close()
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert lines[0] == "2026-11-24 09:15:00 loading the model"
    assert "2026-11-24 09:15:00 held-out reward, greedy: 0.070 before, 0.990 after" in lines
    assert lines[-1] == r"2026-11-24 09:15:00 warning: a surrogate \ud800"
    assert "loading the model\n" in display.getvalue()


def test_a_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*absent/run\.log: No such file"):
        RunLog(tmp_path / "absent" / "run.log")


def test_an_evaluation_alone_needs_no_training_run() -> None:
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    reporter.activity_started("evaluating", 8)
    reporter.evaluation_finished(0, {"evaluation/reward": 0.5})
    assert stream.getvalue() == "evaluating, 8 episodes\nafter step 0: held-out reward 0.500 sampled\n"
