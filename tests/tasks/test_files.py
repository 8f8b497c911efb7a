"""Tasks from files: JSON lines, GSM8K as published, and what the datasets library reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agentrl.config.models import TasksSection
from agentrl.errors import ConfigError
from agentrl.plugins import Plugins
from agentrl.tasks import TaskSet, load_tasks

ROWS = [{"question": "1 + 1?", "answer": "2"}, {"question": "Größe?", "answer": "3 m\u2028"}]


def load(part: object) -> TaskSet:
    return load_tasks(Plugins(), TasksSection(train=part).train, at="tasks.train")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", encoding="utf-8")
    return path


def test_a_jsonl_file_is_a_task_set_by_path_and_by_name(rows: Path) -> None:
    assert list(load(str(rows))) == list(load({"name": "jsonl", "path": str(rows)})) == ROWS


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a"}\r\n\r\n{"question": "b"}')
    assert [task["question"] for task in load(str(path))] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a"', r"bad.jsonl:3 is not JSON: .* at column 17"),
        ("[1, 2]", r"bad.jsonl:3 holds \[1, 2\], not an object"),
        ("NaN", r"bad.jsonl:3"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "fine"}\n\n' + line + "\n")
    with pytest.raises(ConfigError, match=message):
        load(str(path))


def test_a_file_that_is_missing_empty_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the task file .*nowhere\.jsonl"):
        load(str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match=r"empty\.jsonl' is empty"):
        load(str(tmp_path / "empty.jsonl"))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.jsonl"):
        load(str(tmp_path / "binary.jsonl"))


def test_a_bare_file_takes_no_other_key(rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no key 'tasks\.train\.size'"):
        load({"name": str(rows), "size": 3})


GSM8K = {"question": "How many?", "answer": "He has 2*600=<<2*600=1200>>1200.\nSo many.\n#### 1,200"}


def test_gsm8k_gives_the_final_number_and_the_working(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(GSM8K))
    [task] = load({"name": "gsm8k", "path": str(path)})
    assert task == {
        "question": "How many?",
        "answer": "1200",
        "solution": "He has 2*600=<<2*600=1200>>1200.\nSo many.",
    }


def test_gsm8k_refuses_files_of_another_shape(rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1 is not GSM8K"):
        load({"name": "gsm8k", "path": str(rows)})


@pytest.mark.skipif("AGENTRL_TEST_DATA" not in os.environ, reason="AGENTRL_TEST_DATA names no folder")
@pytest.mark.parametrize(("part", "count"), [("train", 7473), ("test", 1319)])
def test_the_real_gsm8k_is_read_whole(part: str, count: int) -> None:
    tasks = load({"name": "gsm8k", "path": f"{os.environ['AGENTRL_TEST_DATA']}/gsm8k/{part}.jsonl"})
    assert len(tasks) == count
    assert all(float(tasks[index]["answer"]) is not None for index in range(count))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own for what the datasets library converts, and no network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("form", ["file", "parquet", "folder"])
def test_the_datasets_library_reads_local_files(rows: Path, form: str) -> None:
    import datasets

    path = {"file": rows, "parquet": rows.with_suffix(".parquet"), "folder": rows.parent / "folder"}[form]
    if form == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    if form == "folder":
        path.mkdir()
        (path / "train.jsonl").write_bytes(rows.read_bytes())
    assert list(load({"name": "datasets", "path": str(path)})) == ROWS


@pytest.mark.usefixtures("cache")
def test_columns_are_renamed_and_unknown_ones_named(rows: Path) -> None:
    part = {"name": "datasets", "path": str(rows), "columns": {"prompt": "question"}}
    assert load(part)[0] == {"prompt": "1 + 1?"}
    with pytest.raises(ConfigError, match=r"no column 'queston' \(did you mean 'question'\?\)"):
        load({**part, "columns": {"prompt": "queston"}})


@pytest.mark.usefixtures("cache")
def test_a_column_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "bytes.parquet"
    datasets.Dataset.from_list([{"question": "a", "photo": b"\xff"}]).to_parquet(str(path))
    with pytest.raises(ConfigError, match="column 'photo' holds a bytes"):
        load({"name": "datasets", "path": str(path)})[0]


@pytest.mark.usefixtures("cache")
def test_what_does_not_load_is_one_line_with_the_reason(rows: Path) -> None:
    for part, reason in [({"split": "tst"}, "tst"), ({"path": str(rows.parent / "nowhere")}, "nowhere")]:
        with pytest.raises(ConfigError, match=reason) as caught:
            load({"name": "datasets", "path": str(rows), **part})
        assert "\n" not in str(caught.value)
