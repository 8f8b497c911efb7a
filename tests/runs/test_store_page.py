"""The page about the episode store tells its tables as they are, and its SQL runs."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

import pytest
from tests.benchmarks.made_run import make_run

from agentrl.runs import schema

PAGE = (Path(__file__).parents[2] / "docs/store.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("place") / "runs" / "quickstart", 192).episodes


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
        found = connection.execute(query).fetchall()
    assert found or "IS NULL" in query


def test_its_code_runs(store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(store.parents[2])
    exec(compile(CODE.replace("the answer", "task"), "store.md", "exec"), {})
    assert "'trained', " in capsys.readouterr().out


def test_there_are_queries() -> None:
    assert len(QUERIES) >= 7
