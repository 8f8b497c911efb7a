"""Several runs beside each other: the same curves, and the keys in which they differ."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from starlette.testclient import TestClient

from agentrl.config import load_config
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.reader import Run
from agentrl.view.app import view_app
from agentrl.view.comparison import differences
from agentrl.view.library import Library


def made(place: Path, name: str, *keys: str) -> Run:
    folder = RunFolder.create(load_config(None, f"run.dir={place}", f"run.name={name}", *keys, environ={}))
    with MetricsLog(folder.metrics) as log:
        log.append(1, {"reward/mean": 0.5, "policy/entropy": 0.25})
    return Run(folder.path)


def compared(place: Path, query: str) -> tuple[int, str]:
    answer = TestClient(view_app(Library([place])), base_url="http://localhost").get(f"/compare?{query}")
    return answer.status_code, html.unescape(answer.text)


def test_what_differs_is_told_for_every_run_and_what_does_not_is_not(tmp_path: Path):
    runs = [
        made(tmp_path, "a"),
        made(tmp_path, "b", "training.learning_rate=0.001", "rollout.group_size=4"),
        made(tmp_path, "c", "rollout.group_size=4", "algorithm=dapo"),
    ]
    found = {each.key: each.values for each in differences(runs)}
    assert found["rollout.group_size"] == ("8", "4", "4")
    assert found["training.learning_rate"][1:] == ("0.001", found["training.learning_rate"][0])
    assert found["algorithm"] == ("grpo", "grpo", "dapo")
    assert not [key for key in found if key.startswith("run.")]
    assert differences(runs[:1]) == differences([runs[0], Run(runs[0].path)]) == []
    status, text = compared(tmp_path, "run=a&run=b&run=c")
    assert status == 200
    assert "<code>rollout.group_size</code></th><td><code>8</code></td><td><code>4</code></td>" in text
    (sources,) = re.findall(r"data-sources='(.*?)'", text)
    assert json.loads(sources) == [{"run": name, "url": f"/runs/{name}/curves.json"} for name in "abc"]
    (drawn,) = re.findall(r"data-metrics='(.*?)'", text)
    assert json.loads(drawn) == ["reward/mean", "evaluation/reward"]


def test_any_metric_can_be_compared(tmp_path: Path):
    for name in "ab":
        made(tmp_path, name)
    status, text = compared(tmp_path, "run=a&run=b&metric=policy/entropy")
    assert status == 200
    assert re.findall(r"data-metrics='(.*?)'", text) == ['["policy/entropy"]']
    assert re.findall(r"<option selected>(.*?)</option>", text) == ["policy/entropy"]
    assert "<option>reward/mean</option>" in text


def test_a_config_of_another_version_hides_no_curve(tmp_path: Path):
    made(tmp_path, "a")
    (made(tmp_path, "b").path / "config.yaml").write_text("seeds: 3\n")
    status, text = compared(tmp_path, "run=a&run=b")
    assert status == 200
    assert "The configs cannot be compared" in text
    assert "there is no key 'seeds'" in text
    assert "data-metrics" in text


def test_what_cannot_be_compared_is_said(tmp_path: Path):
    for name in "abcdefghi":
        made(tmp_path, name)
    assert (compared(tmp_path, "")[0], compared(tmp_path, "run=z")[0]) == (400, 404)
    assert "mark runs in the list" in compared(tmp_path, "")[1]
    assert "did you mean" in compared(tmp_path, "run=aa")[1]
    assert "at most 8" in compared(tmp_path, "&".join(f"run={name}" for name in "abcdefghi"))[1]
