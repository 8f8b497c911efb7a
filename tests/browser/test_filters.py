"""The list of episodes under every filter and order: what it shows is what the reader finds, and its address a link."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from playwright.sync_api import Page, expect
from tests.browser.watching import Watched

from agentrl import open_run

CHOICES = ("phase", "outcome", "fate", "side")
FIELDS: dict[str, Any] = {
    "tool": "calculator",
    "step": 2,
    "task": 0,
    "group": 1,
    "version": 1,
    "min_reward": 0.5,
    "max_reward": 0.25,
    "text": '"answer with a number"',
}


@pytest.fixture
def page(site: str, watch: Callable[..., Watched]) -> Page:
    page = watch().page
    page.goto(f"{site}/runs/recorded/episodes")
    return page


def shown(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("tr[data-row] th").all_inner_texts()]


def found(recorded: Path, **filters: Any) -> list[str]:
    return [str(row.key) for row in open_run(recorded).episodes(**filters)]


def assert_shown(page: Page, keys: list[str]) -> None:
    """The first page of the list holds the first of ``keys``, in their order, and says how many there are."""
    expect(page.locator("tr[data-row]")).to_have_count(min(len(keys), 50))
    assert shown(page) == keys[:50]
    if keys:
        expect(page.locator("caption")).to_contain_text(f"of {len(keys)} episode")


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_of_a_filter_shows_what_the_reader_finds(recorded: Path, page: Page, name: str) -> None:
    choices = page.locator(f"select[name={name}] option").evaluate_all("all => all.map(each => each.value)")
    matched = 0
    for choice in filter(None, choices):
        page.select_option(f"select[name={name}]", choice)
        if f"{name}={choice}" not in page.url:
            page.locator("form[data-filters] button").click()
        page.wait_for_url(f"**{name}={choice}*")
        keys = found(recorded, sort="committed", descending=True, **{name: choice})
        assert_shown(page, keys)
        matched += len(keys)
    assert matched


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_the_filter_shows_what_the_reader_finds(recorded: Path, page: Page, name: str) -> None:
    keys = found(recorded, sort="committed", descending=True, **{name: FIELDS[name]})
    assert 0 < len(keys) < len(found(recorded)) or name == "text"
    page.fill(f"input[name={name}]", str(FIELDS[name]))
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{name}=*")
    assert_shown(page, keys)
    page.reload()
    assert_shown(page, keys)


def test_every_column_sorts_both_ways(recorded: Path, page: Page) -> None:
    names = page.locator("thead th a").all_inner_texts()
    for number, name in enumerate(names):
        orders = set()
        for _ in range(2):
            page.locator("thead th a").nth(number).click()
            page.wait_for_load_state()
            orders.add(page.locator("thead th").nth(number).get_attribute("aria-sort"))
            address = dict(parse_qsl(urlsplit(page.url).query))
            descending = address.get("descending", "0" if "sort" in address else "1") == "1"
            assert_shown(page, found(recorded, sort=address.get("sort", "committed"), descending=descending))
        assert orders == {"ascending", "descending"}, name


def test_slash_goes_to_the_search_and_escape_leaves_it(page: Page) -> None:
    page.keyboard.press("/")
    expect(page.locator("[data-search]")).to_be_focused()
    page.keyboard.type("j?/")
    expect(page.locator("[data-search]")).to_have_value("j?/")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    expect(page.locator("tr[data-row]").first).to_be_focused()
    page.keyboard.press("j")
    expect(page.locator("tr[data-row]").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**/episodes/*")


@pytest.mark.parametrize(
    "address", ["?outcome=nothing", "?step=x", "?sort=colour", "?min_reward=much", "?offset=first", "?fate=sad"]
)
def test_a_filter_that_there_is_not_is_said_in_a_sentence(
    site: str, watch: Callable[..., Watched], address: str
) -> None:
    window = watch()
    window.expect("40[04]")
    answer = window.page.goto(f"{site}/runs/recorded/episodes{address}")
    assert answer is not None
    assert 400 <= answer.status < 500
    expect(window.page.locator("[role=alert]")).to_be_visible()
