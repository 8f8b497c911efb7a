"""The page Run: its numbers are the reader's, it reads only what is new, and it says what the run itself has said."""

from __future__ import annotations

import html
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from agentrl.config import load_config
from agentrl.health.findings import Health
from agentrl.reporting.meanings import meanings
from agentrl.runs.contract import MetricsLine
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog, cut_after
from agentrl.runs.reader import Run, open_run
from agentrl.view.account import account
from agentrl.view.app import view_app
from agentrl.view.columns import MOST, columns, stride
from agentrl.view.library import Library
from agentrl.view.plots import groups_of

STEP = {"policy/entropy": 0.7, "policy/updated": 1, "seconds/step": 2.0, "tokens/completion": 100, "ledger/received": 8}


def made(place: Path, *keys: str) -> RunFolder:
    return RunFolder.create(load_config(None, f"run.dir={place}", "run.name=one", *keys, environ={}))


def logged(folder: RunFolder, first: int, last: int, **more: float) -> None:
    """Steps ``first`` to ``last``, of which every tenth is evaluated; half of the completions are cut off."""
    with MetricsLog(folder.metrics, clock=lambda: 1e9) as log:
        for step in range(first, last + 1):
            cut = {"rollout/truncated": 50, "rollout/calls": 100, "reward/mean": math.sin(step)}
            log.append(step, STEP | cut | more)
            if step % 10 == 0:
                log.append(step, {"evaluation/reward": step / 100})


def client(place: Path) -> TestClient:
    return TestClient(view_app(Library([place])), base_url="http://127.0.0.1:8000")


def asked(browser: TestClient, *names: str, **known: int) -> dict[str, Any]:
    answer = browser.get("/runs/one/curves.json", params={"name": names, **known})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_curve_is_what_the_reader_gives(tmp_path: Path):
    folder = made(tmp_path)
    logged(folder, 1, 25)
    lines = open_run(folder.path).metrics()
    names = sorted({name for line in lines for name in line.metrics})
    got = asked(client(tmp_path), *names)
    assert got["step"] == [line.step for line in lines]
    assert got["time"] == [line.time for line in lines]
    assert got["metrics"] == {name: [line.metrics.get(name) for line in lines] for name in names}
    assert (got["start"], got["count"], got["every"]) == (0, len(lines), 1)


def test_every_metric_of_a_run_is_on_its_page_with_its_newest_value(tmp_path: Path):
    folder = made(tmp_path)
    logged(folder, 1, 25, **{"of_a_plugin/odd <b>": 1.25})
    newest = {name: value for line in open_run(folder.path).metrics() for name, value in line.metrics.items()}
    text = client(tmp_path).get("/runs/one").text
    rows = re.findall(r'<th scope="row"><code>(.*?)</code></th><td class="n"><data value="(.*?)"', text)
    assert {html.unescape(name): float(value) for name, value in rows} == newest
    drawn = [name for each in re.findall(r"data-metrics='(.*?)'", text) for name in json.loads(html.unescape(each))]
    assert Counter(drawn) == Counter(newest.keys())
    assert "Falls slowly; a collapse to 0 ends exploration." in text


def test_a_page_that_follows_is_given_only_what_is_new(tmp_path: Path):
    folder = made(tmp_path)
    logged(folder, 1, 5)
    browser = client(tmp_path)
    first = asked(browser, "reward/mean")
    known = {name: first[name] for name in ("every", "file")}
    nothing = asked(browser, "reward/mean", after=first["count"], **known)
    assert (nothing["step"], nothing["count"], nothing["metrics"]) == ([], 5, {"reward/mean": []})
    logged(folder, 6, 7)
    more = asked(browser, "reward/mean", after=first["count"], **known)
    assert (more["start"], more["step"], more["count"]) == (5, [6, 7], 7)
    other = asked(browser, "policy/entropy", after=0, until=5, **known)
    assert other["metrics"] == {"policy/entropy": [0.7] * 5}


def test_a_run_that_was_resumed_is_read_anew(tmp_path: Path):
    folder = made(tmp_path)
    logged(folder, 1, 9)
    browser = client(tmp_path)
    first = asked(browser, "reward/mean")
    cut_after(folder.metrics, 4)
    logged(folder, 5, 12)
    again = asked(browser, "reward/mean", after=9, every=1, file=first["file"])
    assert again["start"] == 0
    assert again["step"] == [*range(1, 11), 10, 11, 12]
    assert asked(browser, "reward/mean", after=9, every=1, file=again["file"])["start"] == 9


@pytest.mark.parametrize(
    "query",
    ["after=x", "after=" + "9" * 5000, "after=-1", "until=1.5", "every=٣", "&".join(["name=a"] + ["name=b"] * 9)],
)
def test_a_question_that_makes_no_sense_is_refused_in_a_sentence(tmp_path: Path, query: str):
    made(tmp_path)
    answer = client(tmp_path).get(f"/runs/one/curves.json?{query}")
    assert answer.status_code == (200 if "name" in query else 400)
    assert answer.status_code == 200 or "is no number" in answer.json()["error"]


def test_numbers_that_are_none_in_json_are_left_out_of_a_curve(tmp_path: Path):
    folder = made(tmp_path)
    folder.metrics.write_text(
        '{"step": 1, "time": 1, "a": NaN, "b": 2}\n{"step": 2, "time": 2, "a": -Infinity, "b": null}\n'
    )
    browser = client(tmp_path)
    assert asked(browser, "a", "b", "c")["metrics"] == {"a": [None, None], "b": [2, None], "c": [None, None]}
    assert browser.get("/runs/one").status_code == 200


def test_so_many_metrics_that_nobody_looks_at_them_are_refused(tmp_path: Path):
    made(tmp_path)
    query = "&".join(f"name={number}" for number in range(201))
    assert "too many" in client(tmp_path).get(f"/runs/one/curves.json?{query}").json()["error"]


@given(st.integers(0, 5 * MOST))
def test_however_many_steps_there_are_a_screen_full_is_drawn(count: int):
    every = stride(count)
    assert every & (every - 1) == 0
    assert count / every <= MOST
    assert every == 1 or count / (every // 2) > MOST


@given(st.lists(st.integers(0, 60), max_size=6), st.integers(1, 30))
def test_parts_that_were_asked_for_one_after_the_other_are_the_whole(parts: list[int], evaluated: int):
    count = sum(parts)
    lines = [
        MetricsLine(step, float(step), {"evaluation/reward": 1.0} if step % evaluated == 0 else {"reward/mean": 0.5})
        for step in range(count)
    ]
    known, steps = 0, []
    for part in parts:
        got = columns(lines[: known + part], ["reward/mean"], known, every=1)
        assert got["start"] == known
        known = got["count"]
        steps += got["step"]
    assert steps == columns(lines, ["reward/mean"])["step"] == list(range(count))


def test_of_very_many_steps_every_evaluation_is_drawn():
    lines = [
        MetricsLine(step, 0.0, {"evaluation/reward": 0.1} if step % 777 == 3 else {"reward/mean": 0.5})
        for step in range(3 * MOST)
    ]
    got = columns(lines, ["evaluation/reward"])
    assert got["every"] == 4
    assert len([value for value in got["metrics"]["evaluation/reward"] if value is not None]) == len(
        [line for line in lines if line.is_evaluation]
    )
    assert len(got["step"]) < MOST


@given(st.lists(st.sampled_from([name for each in meanings() for name in each.names] + ["x/y", "cost/x", "z"])))
def test_every_metric_is_drawn_once(names: list[str]):
    drawn = [name for group in groups_of(names) for plot in group.plots for name in plot.metrics]
    assert sorted(drawn) == sorted(set(names))


def test_the_troubles_are_those_that_the_run_has_said(tmp_path: Path):
    folder = made(tmp_path, "health.truncation={action: stop, threshold: 0.4}")
    logged(folder, 1, 3)
    run = Run(folder.path)
    browser = client(tmp_path)
    assert account(run, is_over=False).troubles == []
    assert "No rule has found trouble yet" in browser.get("/runs/one").text
    logged(folder, 4, 12)
    found = account(run, is_over=False).troubles
    health = Health(run.config.health, run.config.training.steps, run.config.rollout.max_staleness)
    assert [tuple(each) for each in found] == list(health.review(run.metrics()))
    assert [(each.step, each.finding.rule, each.finding.action) for each in found] == [(5, "truncation", "stop")]
    text = html.unescape(browser.get("/runs/one").text)
    assert "After step 5, truncation" in text
    assert found[0].finding.said in text
    assert found[0].finding.fix in text
    cut_after(folder.metrics, 3)
    assert account(run, is_over=False).troubles == []


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.yaml", "seeds: 3\n", "there is no key 'seeds'"),
        ("metrics.jsonl", "{\n", "line 1 is not JSON"),
        ("summary.json", "[]", "is not a run's summary"),
    ],
)
def test_what_cannot_be_read_is_said_and_the_rest_is_shown(tmp_path: Path, file: str, content: str, said: str):
    folder = made(tmp_path)
    logged(folder, 1, 12)
    (folder.path / file).write_text(content)
    answer = client(tmp_path).get("/runs/one")
    assert answer.status_code == 200
    assert said in html.unescape(answer.text)
    assert ("<code>reward/mean</code>" in answer.text) is (file != "metrics.jsonl")
