"""Every page of a recorded run, as a person opens them: by mouse, by keys, in the dark and on a phone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect
from tests.browser.crawling import crawl, kind_of
from tests.browser.watching import Watched

VIEWS = {
    "/",
    "/runs/recorded",
    "/runs/recorded/episodes",
    *(f"/runs/recorded/episodes/train-N{view}" for view in ("", "?view=tokens", "?view=tree", "?view=timeline")),
    "/runs/recorded/groups/train/N",
    "/runs/recorded/tasks/train/N",
}
"""Kinds of pages that links lead to from the list of runs."""


@pytest.mark.parametrize(
    ("width", "height", "dark"), [(1280, 900, False), (390, 844, True)], ids=["desktop-light", "phone-dark"]
)
def test_every_page_opens_without_an_error_and_fits(
    site: str, watch: Callable[..., Watched], width: int, height: int, dark: bool
) -> None:
    window = watch(width=width, height=height, dark=dark)
    opened = crawl(window, f"{site}/", picture=f"{'phone' if width == 390 else 'desktop'}")
    assert {kind_of(url) for url in opened} >= VIEWS


def test_dark_and_light_follow_the_system_and_then_the_button(site: str, watch: Callable[..., Watched]) -> None:
    def paper(window: Watched) -> int:
        colour = window.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")[:3])

    dark, light = watch(dark=True), watch()
    for window in (dark, light):
        window.page.goto(f"{site}/")
    assert paper(dark) < 150 < 600 < paper(light)
    light.page.click("#theme")
    assert paper(light) < 150
    light.page.reload()
    assert paper(light) < 150


def test_keys_go_through_rows_open_them_and_say_what_they_do(site: str, watch: Callable[..., Watched]) -> None:
    page = watch().page
    page.goto(f"{site}/")
    page.keyboard.press("?")
    expect(page.locator("dialog#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog#keys")).to_be_hidden()
    page.keyboard.press("j")
    expect(page.locator("[data-row]").first).to_be_focused()
    page.keyboard.press("k")
    expect(page.locator("[data-row]").first).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(f"{site}/runs/recorded")
    page.keyboard.press("u")
    page.wait_for_url(f"{site}/")
