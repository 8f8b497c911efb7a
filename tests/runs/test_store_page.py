"""The page about the episode store tells its tables as they are, and its SQL runs."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

import pytest

from agentrl.runs import schema
from agentrl.runs.store import EpisodeStore

PAGE = (Path(__file__).parents[2] / "docs/store.md").read_text(encoding="utf-8")
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "episodes.sqlite"
    EpisodeStore(path).close()
    return path


def described() -> dict[str, list[tuple[str, str]]]:
    """Name and type of each column, by table, as the page has them."""
    sections = re.split(r"^### `(\w+)`$", PAGE, flags=re.MULTILINE)
    rows = {
        name: re.findall(r"^\| `(\w+)` \| (\w+) \| .", text, flags=re.MULTILINE)
        for name, text in zip(sections[1::2], sections[2::2], strict=True)
    }
    return {name: columns for name, columns in rows.items() if columns}


def test_the_page_has_every_table_and_column_of_a_store(store: Path) -> None:
    with contextlib.closing(sqlite3.connect(store)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'search%'")
        columns = {
            name: [(column[1], column[2]) for column in connection.execute(f"PRAGMA table_info({name})")]
            for (name,) in tables.fetchall()
        }
    assert described() == columns


def test_the_page_names_the_version_of_the_schema() -> None:
    assert f"now {schema.SCHEMA_VERSION}." in PAGE


@pytest.mark.parametrize("query", QUERIES)
def test_its_queries_run(store: Path, query: str) -> None:
    with contextlib.closing(sqlite3.connect(store)) as connection:
        connection.execute(query).fetchall()


def test_there_are_queries() -> None:
    assert len(QUERIES) >= 4
