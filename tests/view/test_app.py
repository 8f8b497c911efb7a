"""The frame of the pages: that every run is listed as its reader tells it, and that nothing else can be had."""

from __future__ import annotations

import html
import os
import re
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from agentrl.config import load_config
from agentrl.runs.contract import Summary
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.reader import Run
from agentrl.view.app import view_app
from agentrl.view.library import Library
from agentrl.view.standing import Standing, standing


def made(place: Path, name: str, outcome: str | None = "completed") -> RunFolder:
    """A run of two steps and two evaluations."""
    folder = RunFolder.create(load_config(None, f"run.dir={place}", f"run.name={name}", "training.steps=4", environ={}))
    with MetricsLog(folder.metrics) as log:
        log.append(0, {"evaluation/reward": 0.25})
        for step in (1, 2):
            log.append(step, {"reward/mean": step / 7, "tokens/completion": 300, "seconds/step": 2.0})
        log.append(2, {"evaluation/reward": 0.75})
    if outcome is not None:
        folder.write_summary(Summary(outcome))
    return folder


def client(*places: Path) -> TestClient:
    return TestClient(view_app(Library(places)), base_url="http://127.0.0.1:8000")


def test_every_run_is_listed_with_the_numbers_of_its_files(tmp_path: Path):
    made(tmp_path, "one")
    made(tmp_path, "failing", "failed: the disk is full")
    made(tmp_path, "torn").metrics.write_text("{\n")
    text = client(tmp_path).get("/").text
    rows = dict(re.findall(r'<tr data-row.*?<a href="([^"]*)">(.*?)</tr>', text, re.DOTALL))
    assert set(rows) == {"/runs/one", "/runs/failing", "/runs/torn"}
    values = [float(each) for each in re.findall(r'<data value="([^"]*)"', rows["/runs/one"])]
    assert values == [0.25, 0.75, 2 / 7, 150.0]
    assert "2/4 steps" in rows["/runs/one"]
    assert "failed: the disk is full" in text
    assert "line 1 is not JSON" in text


def test_of_many_runs_the_newest_are_shown_and_no_other_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = made(tmp_path, "r0").path
    for number in range(30):
        if number:
            shutil.copytree(kept, tmp_path / f"r{number}")
        os.utime(tmp_path / f"r{number}" / "config.yaml", (number, number))
    read: list[str] = []
    monkeypatch.setattr("agentrl.view.overview.standing", lambda name, run: read.append(name) or Standing(name, 0.0))
    browser = client(tmp_path)
    text = browser.get("/").text
    assert read == [f"r{number}" for number in range(29, 4, -1)]
    assert "1 to 25 of 30 runs" in text
    (older,) = re.findall(r'<a href="([^"]*)">older</a>', text)
    text = browser.get(older).text
    assert read[25:] == ["r4", "r3", "r2", "r1", "r0"]
    assert '<a href="/?from=0">newer</a>' in text
    assert browser.get("/?from=x").status_code == 400


def test_a_page_that_has_not_changed_is_not_made_again(tmp_path: Path):
    folder = made(tmp_path, "one")
    browser = client(tmp_path)
    for path in ("/", "/runs/one"):
        tag = browser.get(path).headers["etag"]
        again = browser.get(path, headers={"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
        with MetricsLog(folder.metrics) as log:
            log.append(3, {"reward/mean": 0.5})
        assert browser.get(path, headers={"if-none-match": tag}).status_code == 200


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/runs/onee", "there is no run &#39;onee&#39; here (did you mean &#39;one&#39;?)"),
        ("/nowhere", "there is no page /nowhere"),
        ("/assets/..%2fapp.py", "there is no page"),
        ("/assets/app.py", "there is no file"),
    ],
)
def test_what_there_is_not_is_said_in_a_sentence(tmp_path: Path, path: str, said: str):
    made(tmp_path, "one")
    answer = client(tmp_path).get(path)
    assert answer.status_code == 404
    assert said in answer.text


def test_the_cost_of_a_run_is_that_of_its_reader_with_evaluations_and_what_came_after_the_last_line(tmp_path: Path):
    folder = made(tmp_path, "one", outcome=None)
    with MetricsLog(folder.metrics) as log:
        log.append(3, {"cost/machine/money": 0.5, "cost/rollout/judge/money": 0.25, "cost/money": 0.75})
        log.append(3, {"evaluation/reward": 0.5, "cost/machine/money": 0.125, "cost/money": 0.125})
    run = Run(folder.path)
    assert standing("one", run).money == run.cost.money == 0.875
    folder.write_summary(Summary("completed", cost={"currency": "USD", "money": 1.5, "machine": {"money": 1.5}}))
    assert standing("one", run).money == run.cost.money == 1.5


def test_runs_of_one_name_in_two_folders_are_told_apart_and_one_that_is_taken_away_is_gone(tmp_path: Path):
    made(tmp_path / "a", "one")
    made(tmp_path / "b", "one")
    library = Library([tmp_path / "a", tmp_path / "b" / "one"])
    assert library.names() == ["one", "one-2"]
    assert library.run("one-2").path == tmp_path / "b" / "one"
    (tmp_path / "a" / "one" / "config.yaml").unlink()
    assert library.names() == ["one"]


def test_names_are_text_wherever_they_stand(tmp_path: Path):
    name = "<script>alert('% ?#&1')<script>"
    folder = made(tmp_path, "one")
    folder.path.rename(tmp_path / name)
    browser = client(tmp_path)
    listed = browser.get("/").text
    assert name not in listed
    link = html.unescape(re.findall(r'<a href="(/runs/[^"]*)"', listed)[0])
    shown = browser.get(link)
    assert shown.status_code == 200
    assert name not in shown.text
    assert 'aria-current="page"' in shown.text
    assert "<b>" not in browser.get("/runs/%3Cb%3E").text


@pytest.mark.parametrize("name", ["view.css", "view.js", "icon.svg", "plotly.js"])
def test_what_the_pages_load_is_served_from_here_and_kept_by_the_browser(tmp_path: Path, name: str):
    browser = client(tmp_path)
    first = browser.get(f"/assets/{name}")
    assert first.status_code == 200
    assert browser.get(f"/assets/{name}", headers={"if-none-match": first.headers["etag"]}).status_code == 304
