"""``agentrl config``: every key, and the keys of the parts that are installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.installing import install

from agentrl.cli import main
from agentrl.config import Config
from agentrl.config.keys import known_keys

Run = Callable[..., tuple[int, str, str]]

TASKS = '''
raise RuntimeError("imported")
class Tasks:
    """Tasks of somebody."""
    def __init__(self, path: str, size: int = 5):
        pass
'''


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def running(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["config", *arguments])
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, captured.out, captured.err

    return running


def shown(out: str) -> dict[str, list[str]]:
    """The cells of each line by the key at its start."""
    lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]
    return {cells[0]: cells[1:] for cells in lines}


def test_all_keys_are_shown_with_type_default_and_help(run: Run) -> None:
    code, out, err = run()
    assert code == 0
    keys = shown(out)
    assert set(keys) <= set(known_keys(Config))
    assert keys["rollout.group_size"] == [
        "integer, at least 1",
        "8",
        "Episodes of one task that are compared with each other.",
    ]
    assert keys["training.schedule"][:2] == ["constant or linear or cosine", "constant"]
    assert keys["scheduler"][1] == "local"
    assert "agentrl config KEY=NAME" in err


def test_a_key_and_a_section_are_shown_alone(run: Run) -> None:
    assert list(shown(run("rollout.override")[1])) == ["rollout.override"]
    keys = shown(run("run", "seed")[1])
    assert list(keys) == ["run.name", "run.dir", "run.hook_timeout", "seed"]


@pytest.mark.parametrize(
    ("argument", "lines"),
    [
        (
            "inference.backend",
            ["inference.backend=torch: ", "inference.backend.dtype ", "names: openai, torch"],
        ),
        (
            "inference.backend=openai",
            ["inference.backend=openai: ", "inference.backend.url ", "agentrl config inference.backend=NAME"],
        ),
        ("inference.backend.threads", ["inference.backend.threads  integer or null, at least 1  null  CPU threads"]),
        ("tasks.train=jsonl", ["tasks.train.path ", "  required  The file"]),
        ("tasks.eval.digits", ["tasks.eval.digits  integer, at least 1, at most 9  2"]),
        ("agent=calculator", ["agent.kwargs.max_turns  integer  3"]),
        ("algorithm", ["algorithm.objective ", "objective.clip"]),
        ("algorithm.objective=clip", ["algorithm.objective.clip_high "]),
        ("algorithm.correction=correction.truncated", ["algorithm.correction.cap "]),
        ("model", ["model=tiny: A Qwen3", "it takes no keys"]),
        ("reward", ["names: exact-match, "]),
        ("scheduler", ["scheduler=local", "it takes no keys"]),
        ("trackers=tensorboard", ["trackers=tensorboard: Writes every metric", "it takes no keys"]),
    ],
)
def test_the_keys_of_a_part_are_reached_by_its_name(run: Run, argument: str, lines: list[str]) -> None:
    code, out, _ = run(argument)
    assert code == 0
    for line in lines:
        assert line in out


def test_the_keys_of_a_plugin_are_shown_without_importing_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "agentrl-mine", {"agentrl.tasks": {"mine": "mine_mod:Tasks"}}, files={"mine_mod.py": TASKS})
    monkeypatch.syspath_prepend(tmp_path)
    code, out, _ = run("tasks.train=mine")
    assert code == 0
    assert "tasks.train=mine: Tasks of somebody." in out
    assert shown(out)["tasks.train.path"] == ["text", "required"]
    assert shown(out)["tasks.train.size"] == ["integer", "5"]


def test_the_keys_of_a_file_and_of_a_module_are_shown(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my_tasks.py").write_text(TASKS)
    assert "tasks.train.size" in run(f"tasks.train={tmp_path}/my_tasks.py:Tasks")[1]
    assert "reward.tolerance" in run("reward=agentrl.rewards.matching:NumericMatch")[1]
    assert "nothing here says which keys it takes" in run("reward=agentrl.no_such:Thing")[1]


@pytest.mark.parametrize("name", ["questions.csv", "questions.jsonl", "folder"])
def test_the_keys_of_a_file_or_folder_of_tasks_are_those_that_may_stand_beside_its_name(
    run: Run, tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    code, out, _ = run(f"tasks.train={tmp_path}/{name}")
    assert code == 0
    assert out.startswith(f"tasks.train={tmp_path}/{name}: One ")
    keys = shown(out)
    assert "tasks.train.columns" in keys
    assert "tasks.train.path" not in keys


def test_json_holds_the_same(run: Run) -> None:
    document: dict[str, Any] = json.loads(run("training.schedule", "inference.backend=torch", "--json")[1])
    (schedule,) = document["keys"]
    told = (schedule["key"], schedule["default"], schedule["choices"])
    assert told == ("training.schedule", "constant", ["constant", "linear", "cosine"])
    (backend,) = document["parts"]
    assert (backend["key"], backend["name"]) == ("inference.backend", "torch")
    assert {key["key"] for key in backend["keys"]} >= {"inference.backend.dtype", "inference.backend.device"}


@pytest.mark.parametrize(
    ("argument", "code", "said"),
    [
        ("rollout.groop_size", 2, "there is no key 'rollout.groop_size' (did you mean 'group_size'?)"),
        ("group_size", 2, "did you mean 'rollout.group_size'?"),
        ("seed=3", 2, "'seed' names no part, so nothing is known of '3' (parts: agent, model, "),
        ("reward=numeric-mach", 2, "did you mean 'numeric-match' or"),
        ("algorithm.objective=clop", 2, "did you mean 'objective.clip'"),
        ("agent=no/such/agent.py:Agent", 2, "agent file 'no/such/agent.py' does not exist (there is no .py file in"),
    ],
)
def test_what_is_not_there_is_named_with_what_is_near(run: Run, argument: str, code: int, said: str) -> None:
    found, out, err = run(argument)
    assert (found, out) == (code, "")
    assert said in err
