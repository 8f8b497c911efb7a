"""A run that goes on: what it does appears on open pages, and none of them is loaded again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tests.browser import runs
from tests.browser.serving import viewed
from tests.browser.watching import Watched

PATIENCE_MS = 120_000
"""Of a run's beginning, on a machine with much else to do."""
LONGEST = """Math.max(0, ...[...document.querySelectorAll(".js-plotly-plot")].flatMap(plot =>
    plot.data.map(curve => curve.x.length)))"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    """The pages over a folder, in which a run begins a little later, and goes on."""
    with viewed(tmp_path) as url:
        run = runs.start(tmp_path, "live", "training.steps=10000", "evaluation.every=5")
        try:
            yield url
        finally:
            runs.interrupt(run)


def opened(window: Watched, url: str) -> Page:
    """The page, which remembers in a variable that it has not been loaded again."""
    window.page.goto(url)
    window.page.evaluate("window.loaded = 'once'")
    return window.page


def points(page: Page) -> int:
    """How many points the longest curve of the page has."""
    return int(page.evaluate(LONGEST))


def test_a_run_its_curve_and_its_episodes_appear_without_a_reload(place: str, watch: Callable[..., Watched]) -> None:
    runs_page = opened(watch(), f"{place}/")
    expect(runs_page.locator("tr[data-row] a", has_text="live")).to_be_visible(timeout=PATIENCE_MS)
    expect(runs_page.locator(".badge.running")).to_be_visible()

    episodes = opened(watch(), f"{place}/runs/live/episodes")
    expect(episodes.locator("tr[data-row]").first).to_be_visible(timeout=PATIENCE_MS)
    before = episodes.locator("caption").inner_text()

    run = opened(watch(), f"{place}/runs/live")
    run.wait_for_function("() => document.querySelector('.js-plotly-plot')?.data?.length > 0", timeout=PATIENCE_MS)
    first = points(run)
    run.wait_for_function(f"first => {LONGEST} >= first + 3", arg=first, timeout=PATIENCE_MS)
    expect(episodes.locator("caption")).not_to_have_text(before, timeout=PATIENCE_MS)
    for page in (runs_page, episodes, run):
        assert page.evaluate("window.loaded") == "once"
