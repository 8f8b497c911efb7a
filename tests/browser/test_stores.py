"""A store that cannot be read as it is: each page says so in a sentence, and the pages of other runs are as ever."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import expect
from tests.browser.serving import viewed
from tests.browser.watching import Watched
from tests.runs import old_stores

from agentrl import open_run
from agentrl.rollout.contract import EpisodeKey
from agentrl.runs import schema
from agentrl.runs.store import EpisodeStore


def cut_off(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def not_a_store(path: Path) -> None:
    path.write_bytes(b"what is this?\n" * 1000)


def newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")


SPOILED = {
    "cutoff": (cut_off, "is damaged"),
    "other": (not_a_store, "is not an episode store"),
    "newer": (newer, f"has schema {schema.SCHEMA_VERSION + 1}"),
    "missing": (Path.unlink, "no episode store at"),
}


@pytest.fixture(scope="module")
def place(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded run under several names, each with something wrong with it."""
    place = tmp_path_factory.mktemp("spoiled")
    for name, (spoil, _) in SPOILED.items():
        shutil.copytree(recorded, place / name)
        spoil(place / name / "episodes.sqlite")
    for name in ("older", "locked", "torn", "unset", "whole"):
        shutil.copytree(recorded, place / name)
    whole = list(open_run(recorded).load_episodes())
    (place / "older/episodes.sqlite").unlink()
    old_stores.write(place / "older/episodes.sqlite", 4, [(0, episode) for episode in whole[:20]])
    with (place / "torn/metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "time"')
    (place / "unset/config.yaml").write_text("agent: [")
    return place


@pytest.fixture(scope="module")
def site(place: Path) -> Iterator[str]:
    with viewed(place) as url:
        yield url


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_wrong_with_a_store_is_said(site: str, watch: Callable[..., Watched], name: str) -> None:
    window = watch()
    window.expect("503")
    window.page.goto(f"{site}/runs/{name}/episodes")
    expect(window.page.locator("main")).to_contain_text(re.compile(SPOILED[name][1]))
    window.page.goto(f"{site}/runs/{name}")
    expect(window.page.locator("main")).to_contain_text("4/4 steps")
    window.page.goto(f"{site}/")
    expect(window.page.locator("tr[data-row] a", has_text="whole")).to_be_visible()


def test_a_store_of_an_older_schema_is_shown_with_what_it_has(site: str, watch: Callable[..., Watched]) -> None:
    window = watch()
    window.page.goto(f"{site}/runs/older/episodes")
    expect(window.page.locator("tr[data-row]")).to_have_count(20)
    window.page.locator("tr[data-row] th a").first.click()
    expect(window.page.locator("main")).to_contain_text("Solve the problem with the calculator")


def test_a_store_that_another_program_has_locked_is_said(site: str, place: Path, watch: Callable[..., Watched]) -> None:
    window = watch()
    window.expect("503")
    with contextlib.closing(sqlite3.connect(place / "locked/episodes.sqlite", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        window.page.goto(f"{site}/runs/locked/episodes", timeout=90_000)
        expect(window.page.locator("[role=alert]")).to_contain_text("another process has kept it locked")
    window.page.reload()
    expect(window.page.locator("tr[data-row]").first).to_be_visible()


def test_episodes_that_are_being_written_are_shown_once_they_are_there(
    site: str, place: Path, watch: Callable[..., Watched]
) -> None:
    window = watch()
    window.page.goto(f"{site}/runs/whole/episodes")
    caption = window.page.locator("caption")
    before = caption.inner_text()
    episode = next(open_run(place / "whole").load_episodes(phase="train"))
    with EpisodeStore(place / "whole/episodes.sqlite") as store:
        store.submit([replace(episode, key=EpisodeKey("train", 999, 0, 0), trained_step=None)]).result()
        expect(caption).not_to_have_text(before)
        expect(window.page.locator("tr[data-row]").first).to_contain_text("train-999-0-0")


def test_a_torn_line_of_metrics_and_a_broken_config_leave_the_rest_as_it_is(
    site: str, watch: Callable[..., Watched]
) -> None:
    window = watch()
    window.page.goto(f"{site}/runs/torn")
    expect(window.page.locator("main")).to_contain_text("4/4 steps")
    window.page.goto(f"{site}/")
    row = window.page.locator("tr[data-row]", has=window.page.locator("a", has_text="unset"))
    expect(row).to_be_visible()
    expect(window.page.locator("main")).to_contain_text("config.yaml")
