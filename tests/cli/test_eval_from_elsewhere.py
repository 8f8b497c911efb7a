"""A run that is evaluated from another folder is the run that it was, and an evaluation keeps its episodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.warm import WarmInterpreter

from agentrl import open_run
from agentrl.cli import main
from agentrl.runs.folder import read_summary

AGENT = """
from openai import AsyncOpenAI

from my_package.words import ASKED

async def answers(data, *, base_url, api_key, http_client):
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages = [{"role": "user", "content": ASKED + data["question"]}]
    reply = await client.chat.completions.create(model="m", messages=messages)
    return reply.choices[0].message.content

async def fails(data):
    raise LookupError("no such thing")
"""
REWARD = "def score(answer, data):\n    return float(data['answer'] in answer)\n"
SETTINGS = ["training.steps=1", "rollout.tasks_per_step=1", "rollout.group_size=2", "rollout.max_tokens=8"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, warm: WarmInterpreter) -> Path:
    """A project whose run has an agent in a module, a reward in a file and tasks in another, by its own config."""
    project = tmp_path_factory.mktemp("elsewhere") / "project"
    (project / "my_package").mkdir(parents=True)
    (project / "my_package/__init__.py").touch()
    (project / "my_package/words.py").write_text("ASKED = 'Sum: '\n")
    (project / "my_package/agents.py").write_text(AGENT)
    (project / "score.py").write_text(REWARD)
    (project / "data").mkdir()
    (project / "data/sums.csv").write_text("question,answer\n1 + 1?,2\n1 + 2?,3\n")
    settings = {
        "agent": "my_package.agents:answers",
        "reward": "score.py",
        "tasks": {"train": "data/sums.csv", "eval": "data/sums.csv"},
    }
    (project / "config.yaml").write_text(json.dumps(settings))
    code, _, err = called(warm, project, "train", "--config", "config.yaml", "run.name=x", *SETTINGS)
    assert code == 0, err
    return project


def called(warm: WarmInterpreter, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run ``agentrl`` in a process; returns its exit code, stdout and stderr."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AGENTRL_")}
    pipe = subprocess.PIPE
    process = warm.start(*arguments, cwd=folder, environ=environ, stdout=pipe, stderr=pipe)
    out, err = process.communicate()
    return process.wait(), out, err


def test_a_run_is_evaluated_from_anywhere_also_when_it_has_moved(
    project: Path, tmp_path: Path, warm: WarmInterpreter
) -> None:
    """With the agent's module, the reward's file and the tasks that it used."""
    moved = tmp_path / "moved"
    shutil.copytree(project, moved)
    shutil.move(project, project.with_name("gone"))  # what is not taken from beside the run is not found
    try:
        code, out, err = called(warm, tmp_path, "eval", "moved/runs/x", "--json")
    finally:
        shutil.move(project.with_name("gone"), project)
    assert code == 0, err
    measured = json.loads(out)
    assert measured["reward"] == read_summary(moved / "runs/x/summary.json").reward_after
    assert Path(tmp_path / measured["folder"]) == moved / "runs/x-eval"
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def elsewhere(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("AGENTRL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("form", "folder"),
    [("{}", "runs/x"), ("model={}", "runs/x"), ("model.name={}", "runs/x/checkpoints/step-000001")],
)
def test_a_run_and_its_checkpoint_are_models_wherever_one_is_named(
    project: Path, form: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the settings of the run; and what the evaluation came to stays beside the run."""
    name = os.path.relpath(project / folder)
    assert run("eval", form.format(name), "--json") == 0
    measured = json.loads(capsys.readouterr().out)
    summary = read_summary(project / "runs/x/summary.json")
    assert (measured["reward"], measured["reward_greedy"]) == (summary.reward_after, summary.reward_after_greedy)
    kept = Path(measured["folder"])
    assert kept.resolve().parent == project / "runs"
    episodes = list(open_run(kept).load_episodes())
    assert [episode.key.phase for episode in episodes].count("eval-greedy") == len(episodes) / 2 == 2
    assert all(episode.calls for episode in episodes)
    again = read_summary(kept / "summary.json")
    assert (again.outcome, again.steps, again.episodes) == ("completed", 1, 4)
    assert (again.reward_after, again.reward_after_greedy) == (summary.reward_after, summary.reward_after_greedy)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("verb", ["train", "doctor"])
def test_a_run_is_a_model_to_start_from(project: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    dry = ["--dry-run"] if verb == "train" else ["rollout.tasks_per_step=1", "rollout.group_size=2"]
    assert run(verb, "math", f"model={project / 'runs/x'}", *dry) == 0
    if verb == "doctor":
        assert "checkpoints/step-000001" in capsys.readouterr().out


@pytest.mark.usefixtures("elsewhere")
def test_a_run_that_has_saved_nothing_is_no_model(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "runs/empty").mkdir()
    shutil.copy(project / "runs/x/config.yaml", project / "runs/empty")
    for arguments in (["eval", str(project / "runs/empty")], ["train", "math", f"model={project / 'runs/empty'}"]):
        assert run(*arguments) == 2
        assert "runs/empty has saved no checkpoint" in capsys.readouterr().err


@pytest.mark.usefixtures("elsewhere")
def test_an_evaluation_that_fails_keeps_the_episodes_that_it_had(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", str(project / "runs/x"), f"agent={project}/my_package.agents:fails", "run.name=broken"]
    assert run(*arguments) == 1
    said = capsys.readouterr().err
    kept = project / "runs/broken-eval"
    assert f"what there is of the evaluation is in {kept}" in said
    failed = [str(episode.key) for episode in open_run(kept).load_episodes()]
    assert any(key in said for key in failed)  # the error names one to look at
    assert read_summary(kept / "summary.json").outcome.startswith("failed: ")


@pytest.mark.usefixtures("elsewhere")
def test_an_evaluation_that_is_refused_leaves_no_folder(project: Path, elsewhere: Path) -> None:
    before = set((project / "runs").iterdir())
    for setting in ("inference.backend.nothing=1", "tasks.eval=null", "evaluation.temperature=0.5x", "reward=none"):
        assert run("eval", str(project / "runs/x"), setting) == 2
    assert set((project / "runs").iterdir()) == before
    assert list(elsewhere.iterdir()) == []
