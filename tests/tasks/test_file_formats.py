"""Files of tasks by their ending: what they hold arrives as it is written, and what is wrong is one line."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.config.models import TasksSection
from agentrl.errors import ConfigError
from agentrl.plugins import Plugins
from agentrl.tasks import TaskSet, load_tasks
from agentrl.tasks.loading import READERS
from agentrl.worker.protocol import decode, encode

ROWS = [
    {"question": "7 + 0?", "answer": "007"},
    {"question": 'Größe, "so"?\nAnd \u2028 this?', "answer": ""},
    {"question": "When?", "answer": "2026-11-24 10:00:00"},
    {"question": "NA", "answer": "1e5"},
]


def load(part: object) -> TaskSet:
    return load_tasks(Plugins(), TasksSection(train=part).train, at="tasks.train")


def write_csv(path: Path, delimiter: str = ",") -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["question", "answer"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_lines(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")


def write_list(path: Path) -> None:
    path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8-sig")


def write_parquet(path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).to_parquet(str(path))


def write_saved(path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))


def write_splits(path: Path) -> None:
    import datasets

    whole = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(str(path))


def write_folder(path: Path) -> None:
    path.mkdir()
    write_csv(path / "train.csv")


FORMS: dict[str, Callable[[Path], None]] = {
    "rows.jsonl": write_lines,
    "rows.JSONL": write_lines,
    "rows.ndjson": write_lines,
    "rows.json": write_list,
    "lines.json": write_lines,
    "rows.csv": write_csv,
    "rows.tsv": lambda path: write_csv(path, "\t"),
    "rows.parquet": write_parquet,
    "saved": write_saved,
    "splits": write_splits,
    "folder": write_folder,
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("form", FORMS)
def test_a_file_or_folder_named_as_the_tasks_is_read_as_it_is_written(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form)
    tasks = load(str(tmp_path / form))
    assert list(tasks) == ROWS
    assert tasks[-1] == ROWS[-1]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("form", FORMS)
def test_the_fields_of_a_task_may_be_named_otherwise_than_the_columns(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form)
    assert load({"name": str(tmp_path / form), "columns": {"prompt": "answer"}})[0] == {"prompt": "007"}
    with pytest.raises(ConfigError, match=r"no column 'anser'.*did you mean 'answer'"):
        load({"name": str(tmp_path / form), "columns": {"prompt": "anser"}})


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("form", ["rows.csv", "rows.tsv", "folder"])
def test_csv_through_the_datasets_library_keeps_its_text(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form)
    assert list(load({"name": "datasets", "path": str(tmp_path / form)})) == ROWS


@pytest.mark.usefixtures("cache")
def test_the_librarys_reader_takes_options_of_the_format(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", ";")
    part = {"name": "datasets", "path": str(tmp_path / "rows.csv")}
    assert list(load({**part, "options": {"delimiter": ";"}})) == ROWS
    with pytest.raises(ConfigError, match=r"cannot load data set.*delimeter"):
        load({**part, "options": {"delimeter": ";"}})


@pytest.mark.usefixtures("cache")
def test_a_saved_data_set_gives_the_split_that_is_asked_for(tmp_path: Path) -> None:
    write_splits(tmp_path / "splits")
    write_saved(tmp_path / "saved")
    assert list(load({"name": str(tmp_path / "splits"), "split": "test"})) == ROWS[:1]
    assert list(load({"name": str(tmp_path / "saved"), "split": "train[1:3]"})) == ROWS[1:3]
    with pytest.raises(ConfigError, match=r"no split 'tset'.*did you mean 'test'"):
        load({"name": str(tmp_path / "splits"), "split": "tset"})


DEEP = 100_000
WRONG_JSON = {
    "digits": '{"answer": ' + "1" * 5000 + "}",
    "lists": '{"answer": ' + "[" * DEEP + "]" * DEEP + "}",
    "objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "too deep to copy": '{"answer": ' + "[" * 400 + "]" * 400 + "}",
    "not a number": '{"answer": NaN}',
    "cut": '{"answer": "a',
    "half": '{"answer": [1,}',
    "bytes": '{"answer": "\udcff"}',
    "a list": "[1, 2]",
    "text": '"a"',
}


@pytest.mark.parametrize("line", WRONG_JSON.values(), ids=WRONG_JSON)
@pytest.mark.parametrize("name", ["bad.jsonl", "bad.json"])
def test_json_that_cannot_be_used_is_refused_in_one_line_with_its_place(tmp_path: Path, name: str, line: str) -> None:
    path = tmp_path / name
    good = '{"answer": "fine"}'
    text = f"{good}\n{line}\n" if name == "bad.jsonl" else f"[{good},\n{line}]"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"bad\.jsonl:2 |item 2 of .*bad\.json |bad\.json is not JSON") as caught:
        load(str(path))
    assert "\n" not in str(caught.value)
    assert len(caught.value.message) < 400


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_what_is_read_can_be_copied_and_sent_to_workers(value: object) -> None:
    from agentrl.tasks.records import parse_json

    for _ in range(90):
        value = [value]
    read = parse_json(json.dumps({"a": value}).encode(), "here")
    assert copy.deepcopy(read) == decode(encode({"type": "run", "data": read}))["data"] == {"a": value}


WRONG_CSV = {
    "too few": ("a,b\n1\n", r"bad.csv:2 has 1 fields, and the first row names 2"),
    "too many": ("a,b\n1,2\n3,4,5\n", r"bad.csv:3 has 3 fields"),
    "twice": ("a,a\n1,2\n", r"a column named 'a'"),
    "unnamed": ("a,\n1,2\n", r"a column named ''"),
    "open": ('a,b\n1,"2\n', r"bad.csv:\d is not CSV"),
    "semicolons": ("a;b\n1;2\n", r"names one column, 'a;b' \(set delimiter=';'"),
    "empty": ("a,b\n", "is empty"),
    "nothing": ("", "is empty"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_CSV.values(), ids=WRONG_CSV)
def test_csv_that_cannot_be_used_is_refused_in_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(str(tmp_path / "bad.csv"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["q.xlsx", "q.yaml", "notes.txt"])
@pytest.mark.parametrize("there", [True, False])
def test_a_file_of_another_kind_is_told_which_kinds_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, there: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / name).write_text("a")
    with pytest.raises(ConfigError) as caught:
        load(name)
    assert repr(name) in caught.value.message
    assert all(each in str(caught.value) for each in READERS)


def test_a_missing_file_names_those_that_are_like_it(tmp_path: Path) -> None:
    write_csv(tmp_path / "questions.csv")
    with pytest.raises(ConfigError, match=r"cannot read the task file .*did you mean 'questions\.csv'"):
        load(str(tmp_path / "question.csv"))


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("folder", ["", "gone/", "~nobody-of-this-name/"])
def test_a_missing_file_of_any_ending_is_looked_for_on_the_disk_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agentrl.tasks.hub._load", lambda settings: pytest.fail(f"asked for {settings.path}"))
    with pytest.raises(ConfigError, match=r"cannot read the task file .*No such file or directory"):
        load(f"{folder}questions{ending}")


def test_an_id_of_the_hub_is_told_how_it_is_written() -> None:
    with pytest.raises(ConfigError, match=r"\{name: datasets, path: openai/gsm8k\}"):
        load("openai/gsm8k")


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


BIG = {
    "rows.jsonl": lambda row, count: f"{json.dumps(row)}\n" * count,
    "rows.json": lambda row, count: f"[{', '.join([json.dumps(row)] * count)}]",
    "rows.csv": lambda row, count: "question,answer\n" + f"{row['question']},{row['answer']}\n" * count,
}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("form", BIG)
def test_tasks_stay_on_the_disk_until_they_are_wanted(tmp_path: Path, form: str) -> None:
    path, row = tmp_path / form, {"question": "x" * 1000, "answer": "7"}
    path.write_text(BIG[form](row, 4000))
    load(str(path))  # what reading imports is not a task's
    before, _ = tracemalloc.get_traced_memory()
    tasks = load(str(path))
    held, _ = tracemalloc.get_traced_memory()
    assert len(tasks) == 4000
    assert tasks[3999] == row
    assert held - before < path.stat().st_size / 10


def test_a_file_that_changes_under_a_run_is_refused_and_a_new_one_in_its_place_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_lines(path)
    tasks = load(str(path))
    (tmp_path / "other.jsonl").write_text('{"question": "another"}\n')
    (tmp_path / "other.jsonl").rename(path)
    assert list(tasks) == ROWS
    tasks = load(str(path))
    path.write_text('{"question": "longer than before"}\n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl' was changed while it was in use"):
        tasks[0]


def test_a_task_that_an_agent_changes_is_as_before_when_it_comes_again(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl")
    tasks = load(str(tmp_path / "rows.jsonl"))
    tasks[0]["answer"] = "spoilt"
    assert tasks[0] == ROWS[0]
