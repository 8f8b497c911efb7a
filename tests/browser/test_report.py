"""A report that was sent to somebody: it draws its curves, loads nothing, and what models wrote does not run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect
from tests.browser import hostile
from tests.browser.crawling import shoot
from tests.browser.watching import Watched

from agentrl import open_run


def exported(run: Path, file: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "agentrl", "view", str(run), "--export", str(file), *options]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return file


def opened(window: Watched, file: Path) -> None:
    """Open the file as its reader does, and see that the browser asks for nothing else."""
    window.page.goto(file.as_uri())
    window.page.wait_for_load_state("networkidle")
    assert window.requested == [file.as_uri()]
    window.requested.clear()


@pytest.fixture(scope="module")
def report(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the recorded run."""
    return exported(recorded, tmp_path_factory.mktemp("report") / "report.html")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["desktop", "phone, dark"])
def test_it_draws_the_curves_and_shows_the_episodes(
    recorded: Path, report: Path, watch: Callable[..., Watched], width: int, dark: bool
) -> None:
    window = watch(width=width, dark=dark)
    opened(window, report)
    window.page.wait_for_function("() => document.querySelector('.js-plotly-plot')?.data?.length > 0")
    drawn = window.page.evaluate("[...document.querySelector('.js-plotly-plot').data[0].y]")
    assert drawn == [line.metrics["reward/mean"] for line in open_run(recorded).steps()]
    best = open_run(recorded).episodes(phase="train", sort="reward", descending=True, limit=1)[0]
    expect(window.page.get_by_text(str(best.key)).first).to_be_visible()
    shoot(window, f"report-{width}")
    assert window.sideways() == []


def test_nothing_of_a_hostile_run_runs_in_it(hostile_run: Path, tmp_path: Path, watch: Callable[..., Watched]) -> None:
    keys = ["--episodes", ",".join(str(hostile.key(name)) for name in hostile.SCRIPTS)]
    window = watch()
    opened(window, exported(hostile_run, tmp_path / "report.html", *keys))
    text = window.page.evaluate("document.body.textContent")
    assert all(hostile.word(name) in text for name in hostile.SCRIPTS)
    assert window.page.evaluate("window.ran") is None
