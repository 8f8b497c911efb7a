"""On a terminal progress is drawn, and the terminal is given back."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from agentrl.gateway.contract import Call
from agentrl.reporting.live import LiveReporter
from agentrl.reporting.plain import PlainReporter
from agentrl.reporting.reporter import default_reporter
from agentrl.rollout.contract import Episode, EpisodeKey, Failure
from agentrl.runs.contract import RunInfo
from agentrl.runs.ledger import Ledger

sys.path.insert(0, str(Path(__file__).parent))
from fake_run import drive

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def last_drawing(width: int = 100) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    drive(LiveReporter(console), lambda seconds: None)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).split("after step 20")[-1]


def test_the_drawing_that_stays_shows_the_whole_run() -> None:
    drawing = last_drawing()
    assert re.search(r"step +20/20 +━{40}", drawing)
    assert re.search(r"reward +0\.934  [▁▂▃▄▅▆▇█]{20}  0\.130 to 0\.934", drawing)
    assert "0.108 → 0.934 sampled   0.119 → 1.000 greedy" in drawing
    assert "64.0 episodes/s   2,624 tokens/s" in drawing
    assert "rollout 0.60   learner 0.40" in drawing
    assert "saving" not in drawing


def test_what_went_wrong_stays_in_sight_with_its_commonest_cause() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    reporter = LiveReporter(console, tracebacks=True)
    reporter.activity_started("rolling out", 4)
    failure = Failure("agent", "ValueError: [bold]", "ValueError at x.py:1", "Traceback\n  at x.py")
    for sample in range(3):
        reporter.episode_finished(Episode(EpisodeKey("train", 1, 0, sample), {}, "failed", None, failure=failure))
    mistaken = Episode(EpisodeKey("train", 1, 0, 3), {}, "rewarded", 0.0, mistake="no such tool")
    reporter.episode_finished(mistaken)
    reporter.step_finished(1, Ledger(4, {"failed": 3, "trained": 1}, {"agent": 3}).metrics())
    reporter.close()
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"failed +3, 3x train-1-0-0: agent: ValueError: \[bold\]", output)
    assert re.search(r"ledger +4 episodes: 1 trained, 3 failed \(3 agent\)", output)
    assert re.search(r"mistaken +1, 1x train-1-0-3: no such tool", output)
    assert output.count("Traceback") == 1


def drawn(report: Callable[[LiveReporter], None]) -> str:
    """The last drawing after ``report``, without what moves the cursor."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    reporter = LiveReporter(console)
    reporter.activity_started("rolling out", 4)
    report(reporter)
    reporter.close()
    output = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())  # type: ignore[attr-defined]
    return output.rpartition("rolling out")[2]


def rewarded(sample: int, reward: float, said: str = "") -> Episode:
    calls = (Call(f"c{sample}", None, {}, {"role": "assistant", "content": said}, "stop", 1, 1),)
    return Episode(EpisodeKey("train", 1, 0, sample), {}, "rewarded", reward, calls=calls)


def test_the_last_interesting_episode_is_shown_with_what_it_said() -> None:
    def report(reporter: LiveReporter) -> None:
        reporter.episode_finished(rewarded(0, 0.5, "no"))
        reporter.episode_finished(rewarded(1, 0.9, "It is\n[bold]42[/bold]\x1b]0;title\x07."))
        reporter.episode_finished(rewarded(2, 0.7, "neither"))

    assert re.search(
        r"episode +best: train-1-0-1, reward 0\.900: It is \[bold\]42\[/bold\]\\u001b\]0;title", drawn(report)
    )


def test_a_step_begins_the_search_for_interesting_episodes_anew_and_a_failure_is_always_one() -> None:
    def report(reporter: LiveReporter) -> None:
        reporter.episode_finished(rewarded(0, 0.9))
        reporter.step_finished(1, {"staleness/mean": 0.25, "staleness/max": 2.0})
        reporter.episode_finished(rewarded(1, 0.5, "calm"))

    drawing = drawn(report)
    assert re.search(r"episode +best: train-1-0-1, reward 0\.500: calm", drawing)
    assert re.search(r"staleness +0\.25 versions on average, 2 at most", drawing)
    failed = Episode(EpisodeKey("train", 1, 0, 2), {}, "failed", None, failure=Failure("agent", "no such file"))
    assert re.search(r"episode +failed: train-1-0-2: agent: no such file", drawn(lambda r: r.episode_finished(failed)))


def test_the_findings_of_learning_health_stay_in_sight() -> None:
    def report(reporter: LiveReporter) -> None:
        reporter.step_finished(3, {})
        reporter.warning("health: truncation: completions were cut")
        reporter.warning("something else")

    assert re.search(r"health +after step 3: truncation: completions were cut", drawn(report))
    assert re.search(r"health +nothing found", drawn(lambda reporter: reporter.step_finished(1, {})))


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_it_fits_terminals_of_any_width(width: int) -> None:
    assert max(map(len, last_drawing(width).splitlines())) <= width


def test_what_happens_once_stays_above_and_is_not_read_as_markup() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    reporter = LiveReporter(console)
    reporter.activity_started("loading the model")
    reporter.warning("[bold]blocked[/bold] [/nonsense]")
    reporter.close()
    assert "warning: [bold]blocked[/bold] [/nonsense]\n" in console.file.getvalue()  # type: ignore[attr-defined]


def test_closing_gives_the_cursor_back_whatever_came_before() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    reporter = LiveReporter(console)
    reporter.close()
    reporter.run_started(RunInfo("x", Path("runs/x"), "math", "tiny", 0, 64, "arithmetic"))
    reporter.activity_started("loading the model")
    reporter.close()
    reporter.close()
    output: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert output.count(HIDE_CURSOR) == output.count(SHOW_CURSOR) == 1


def test_a_stream_that_is_no_terminal_gets_plain_lines() -> None:
    assert isinstance(default_reporter(io.StringIO()), PlainReporter)


def run_on_a_terminal(term: str, interrupt: bool) -> str:
    """What ``fake_run.py`` writes to a terminal; interrupted once it draws its bar."""
    ours, theirs = pty.openpty()
    command = [sys.executable, str(Path(__file__).parent / "fake_run.py"), "0.05" if interrupt else "0.001"]
    environment = {**os.environ, "TERM": term, "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        output = b""
        while select.select([ours], [], [], 20)[0]:
            try:
                output += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if interrupt and "━".encode() in output:
                process.send_signal(signal.SIGINT)
                interrupt = False
    os.close(ours)
    return output.decode()


def test_ctrl_c_leaves_the_terminal_as_it_was() -> None:
    output = run_on_a_terminal("xterm", interrupt=True)
    assert "KeyboardInterrupt" in output
    assert output.count(HIDE_CURSOR) == output.count(SHOW_CURSOR) == 1
    assert output.rindex(SHOW_CURSOR) < output.index("KeyboardInterrupt")


def test_results_come_after_the_drawing() -> None:
    output = run_on_a_terminal("xterm", interrupt=False)
    assert output.rindex(SHOW_CURSOR) < output.index("evaluate it: agentrl eval")


def test_a_terminal_that_cannot_redraw_gets_plain_lines() -> None:
    output = run_on_a_terminal("dumb", interrupt=False)
    assert "\x1b" not in output
    assert "step 20/20" in output
