"""Paths in a configuration are relative to its file, wherever a command is called from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from agentrl import load_config
from agentrl.config import Config, dump_yaml

PATHS = [
    "run.dir: runs",
    "agent: agents.py",
    "agent: agents.py:Agent",
    "agent: package.inner:Agent",
    "agent: {name: agents.py:Agent}",
    "agent: {name: math, python: env/bin/python}",
    "agent: {name: math, outcomes: ['agents.py:Unexpected']}",
    "agent: {name: math, outcomes: ['package.inner:Unexpected', 'json:JSONDecodeError']}",
    "model: weights",
    "model: ./nowhere",
    "model: 1000",
    "run.dir: 2026",
    "model: {name: weights}",
    "tasks.train: nowhere.jsonl",
    "tasks.train: saved",
    "tasks.train: sub/questions.CSV",
    "tasks.eval: {name: sub/questions.CSV, columns: {question: problem}}",
    "tasks.eval: {name: jsonl, path: nowhere.jsonl}",
    "tasks.eval: {name: datasets, path: saved}",
    "tasks.train: agents.py:make",
    "reward: agents.py:score",
    "reward: agents:score",
    "reward: {name: agents.py:score, words: ./words.txt}",
    "algorithm: {name: grpo, advantage: agents.py:Mine}",
    "algorithm: {name: grpo, advantage: {name: agents.py:Mine, scale: 1}}",
    "inference.backend: {name: agents.py:Engine, folder: weights}",
    "trackers: [agents.py:Tracker]",
    "gateway: {normalise: [agents.py:rule]}",
    "rollout.mode: agents.py:Executor",
]
"""Each holds a path, or two."""
NAMES = [
    "agent: math",
    "agent: installed.module:Agent",
    "agent: installed.module.Agent",
    "algorithm: {name: grpo, objective: objective.clip}",
    "agent: agentrl-camel/camel-math",
    "agent: {name: math, python: camel}",
    "agent: {name: math, outcomes: ['installed.module:Unexpected', 'json:JSONDecodeError']}",
    "agent: {name: math, kwargs: {style: weights, file: agents.py}}",
    "model: tiny",
    "model: Qwen/Qwen3-0.6B",
    "model: ~/weights",
    "model: /weights",
    "tasks.train: arithmetic",
    "tasks.eval: {name: datasets, path: openai/gsm8k}",
    "tasks.train: installed.module:make",
    "reward: {name: regex, pattern: 'agents:(.*)', path: none}",
    "algorithm: {name: grpo, normalisation: token, objective: objective.clip}",
    "inference.backend: {name: vllm, python: weights, urls: ['http://127.0.0.1:8000']}",
    "trackers: [tensorboard]",
    "gateway: {normalise: [clock-times]}",
]
"""None holds a path that is relative, though folders and files of some of those names are there."""


def as_yaml(text: str) -> str:
    key, value = text.split(": ", 1)
    document: Any = YAML(typ="safe").load(value)
    for name in reversed(key.split(".")):
        document = {name: document}
    return json.dumps(document)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of its own, beside the current one."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in ("weights", "saved", "sub", "1000", "package", "env/bin", "tiny", "camel", "arithmetic"):
        (project / folder).mkdir(parents=True)
    for file in ("agents.py", "package/__init__.py", "package/inner.py", "sub/questions.CSV", "words.txt"):
        (project / file).touch()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return project


def texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in texts(inner)]
    return [text for inner in value for text in texts(inner)] if isinstance(value, list) else [str(value)]


def load(project: Path, text: str) -> Config:
    (project / "config.yaml").write_text(as_yaml(text))
    return load_config(project / "config.yaml", environ={})


def plain(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json")


@pytest.mark.parametrize("text", PATHS)
def test_a_path_in_a_file_is_relative_to_the_file(project: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    there = plain(load(project, text))
    monkeypatch.chdir(project)
    here = plain(load(Path(), text))
    moved = [pair for pair in zip(texts(here), texts(there), strict=True) if pair[0] != pair[1]]
    assert moved
    assert all(after == f"{project}/{before.removeprefix('./')}" for before, after in moved)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("agent: agents.Agent", "agents:Agent"),
        ("agent: package.inner.Outer.Nested", "package.inner:Outer.Nested"),
        ("agent: package.inner", "package.inner:"),
        ("agent: {name: math, outcomes: [package.inner.Unexpected]}", "package.inner:Unexpected"),
        ("reward: package.score", "package:score"),
        ("tasks.train: package.inner.make", "package.inner:make"),
        ("scheduler: {type: agents.Elsewhere}", "agents:Elsewhere"),
        ("algorithm: {name: grpo, advantage: agents.Mine}", "agents:Mine"),
    ],
)
def test_a_dotted_path_means_a_module_beside_the_file(project: Path, text: str, reference: str) -> None:
    assert f"{project}/{reference}" in texts(plain(load(project, text)))


@pytest.mark.parametrize("text", NAMES)
def test_what_is_no_path_stays_as_it_is_written(project: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    there = load(project, text)
    monkeypatch.chdir(project)
    assert there == load(Path(), text)


@pytest.mark.parametrize("text", [*PATHS, *NAMES])
def test_a_config_that_a_run_keeps_means_the_same_from_anywhere(
    project: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Also where the runs are kept on another disk behind a link."""
    disk = project.parent / "disk" / "far"
    disk.mkdir(parents=True)
    (project / "runs").symlink_to(disk)
    (disk / "run").mkdir()
    monkeypatch.chdir(project)
    config = load(Path(), text)
    (project / "runs/run/config.yaml").write_text(dump_yaml(config, project / "runs/run"))
    for where, file in [
        (project, "runs/run"),
        (project, disk / "run"),
        (project.parent / "elsewhere", "../project/runs/run"),
    ]:
        monkeypatch.chdir(where)
        again = load_config(os.path.join(file, "config.yaml"), environ={})
        for mine, kept in zip(texts(plain(config)), texts(plain(again)), strict=True):
            if kept != mine:
                assert os.path.realpath(kept) == os.path.realpath(project / mine)
            else:
                assert where == project or not (project / mine.partition(":")[0]).is_file() or "kwargs" in text


def test_a_value_of_the_command_line_is_relative_to_the_current_folder(project: Path) -> None:
    (project / "config.yaml").write_text("tasks: {train: questions.jsonl}\n")
    config = load_config(project / "config.yaml", "tasks.eval=questions.jsonl", environ={})
    assert config.tasks.train.name == str(project / "questions.jsonl")
    assert config.tasks.eval is not None
    assert config.tasks.eval.name == "questions.jsonl"
