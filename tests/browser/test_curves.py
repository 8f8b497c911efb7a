"""The curves of one run and of several: drawn from the metrics, smoothed, on another axis, and found by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from tests.browser.crawling import shoot
from tests.browser.serving import viewed
from tests.browser.watching import Watched

from agentrl import open_run


@pytest.fixture(scope="module")
def site(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The pages over two runs, which differ in a key of their configs."""
    place = tmp_path_factory.mktemp("two")
    for name in ("one", "two"):
        shutil.copytree(recorded, place / name)
    config = place / "two/config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 7"))
    with viewed(place) as url:
        yield url


def drawn(page: Page, metric: str) -> list[dict[str, Any]]:
    """The lines of the first plot that shows ``metric``, once it is drawn."""
    plot = f"[...document.querySelectorAll('.plot')].find(p => p.dataset.metrics.includes('\"{metric}\"'))"
    page.wait_for_function(f"() => {plot}?.querySelector('.js-plotly-plot')?.data?.length > 0")
    lines: list[dict[str, Any]] = page.evaluate(
        f"{plot}.querySelector('.js-plotly-plot').data.map(d => ({{name: d.name, x: [...d.x], y: [...d.y]}}))"
    )
    return lines


def test_a_curve_has_the_values_of_the_metrics_and_follows_its_controls(
    recorded: Path, site: str, watch: Callable[..., Watched]
) -> None:
    page = watch().page
    page.goto(f"{site}/runs/one")
    steps = open_run(recorded).steps()
    values = [line.metrics["reward/mean"] for line in steps]
    line = next(each for each in drawn(page, "reward/mean") if each["name"] == "reward/mean")
    assert line["x"] == [1, 2, 3, 4]
    assert line["y"] == values
    page.locator("#smooth").fill("0.9")
    page.wait_for_function(
        "all => document.querySelector('.js-plotly-plot').data.some(d => d.y.length === 4 && `${d.y}` !== `${all}`)",
        arg=values,
    )
    page.locator("#smooth").fill("0")
    page.check("#log")
    page.wait_for_function("() => document.querySelector('.js-plotly-plot').layout.yaxis.type === 'log'")
    page.select_option("#by", "time")
    page.wait_for_function("() => document.querySelector('.js-plotly-plot').data[0].x[0] !== 1")


def test_slash_finds_a_plot_by_the_name_of_its_metric(site: str, watch: Callable[..., Watched]) -> None:
    page = watch().page
    page.goto(f"{site}/runs/one")
    drawn(page, "reward/mean")
    page.keyboard.press("/")
    page.keyboard.type("entropy")
    expect(page.locator("figure.plot:visible").first).to_contain_text("entropy", ignore_case=True)
    expect(page.locator("figure.plot[data-metrics*='reward/mean']")).to_be_hidden()


@pytest.mark.parametrize("width", [1280, 390])
def test_runs_are_compared_on_one_plot_with_what_differs_in_their_configs(
    site: str, watch: Callable[..., Watched], width: int
) -> None:
    window = watch(width=width, dark=width == 390)
    page = window.page
    page.goto(f"{site}/")
    for number in range(2):
        page.locator("tr[data-row] input[type=checkbox]").nth(number).check()
    page.get_by_role("button", name="Compare").first.click()
    page.wait_for_url("**/compare?*")
    names = {each["name"].split(" · ")[0] for each in drawn(page, "reward/mean")}
    assert names == {"one", "two"}
    expect(page.locator("main")).to_contain_text("seed")
    assert window.sideways() == []
    shoot(window, f"compare-{width}")
