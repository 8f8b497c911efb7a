"""Text of models is shown and never run, whatever it holds, and the page stays alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import expect
from tests.browser import hostile
from tests.browser.crawling import crawl, shoot
from tests.browser.serving import viewed
from tests.browser.watching import Watched

RUN = f"/runs/{quote(hostile.NAME, safe='')}"


@pytest.fixture(scope="module")
def site(hostile_run: Path) -> Iterator[str]:
    with viewed(hostile_run.parent) as url:
        yield url


def assert_harmless(window: Watched) -> None:
    """Nothing ran, nothing was hidden, and keys still work."""
    assert window.page.evaluate("window.ran") is None
    assert not window.page.evaluate(
        "[...document.querySelectorAll('a[href]')].some(a => !/^(https?|mailto):/.test(a.href))"
    )
    expect(window.page.locator("h1").first).to_be_visible()
    window.page.locator("h1").first.click()
    window.page.keyboard.press("?")
    expect(window.page.locator("dialog#keys")).to_be_visible()
    window.page.keyboard.press("Escape")


def test_no_page_of_a_hostile_run_runs_anything(site: str, watch: Callable[..., Watched]) -> None:
    window = watch(width=390, height=844)
    for url in crawl(window, f"{site}/", most=25, picture="hostile"):
        assert window.page.evaluate("window.ran") is None, url
    assert_harmless(window)


@pytest.mark.parametrize("name", [*hostile.TEXTS, "tokens"])
def test_an_episode_is_shown_and_does_not_run(site: str, watch: Callable[..., Watched], name: str) -> None:
    window = watch(width=390 if name in hostile.CHARACTERS else 1280)
    window.page.goto(f"{site}{RUN}/episodes/{hostile.key(name)}")
    assert window.page.evaluate("document.body.textContent").count(hostile.word(name)) >= 1
    if name in hostile.SCRIPTS:
        whole = " ".join(window.page.evaluate("document.body.textContent").split())
        assert " ".join(hostile.SCRIPTS[name].split()) in whole
    shoot(window, f"hostile-{name}")
    assert window.sideways() == []
    assert_harmless(window)
