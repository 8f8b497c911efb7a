"""From a part of the config to a checked task set."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrl.config.models import TasksSection
from agentrl.errors import ConfigError
from agentrl.plugins import Plugins
from agentrl.tasks import TaskSet, load_tasks


def load(part: object) -> TaskSet:
    return load_tasks(Plugins(), TasksSection(train=part).train)


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "my_tasks.py"
    path.write_text(
        "def squares(count: int):\n    return [{'question': f'{n} * {n}?', 'answer': n * n} for n in range(count)]\n"
        "def numbers():\n    return [1, 2]\n"
        "def endless():\n    return iter([{}])\n"
    )
    return path


def test_a_function_in_a_file_is_a_task_set(module: Path) -> None:
    tasks = load({"name": f"{module}:squares", "count": 3})
    assert len(tasks) == 3
    assert tasks[2] == {"question": "2 * 2?", "answer": 4}
    assert list(tasks) == [tasks[0], tasks[1], tasks[-1]]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"name": "squares", "count": 0}, "is empty"),
        ({"name": "endless"}, "no length"),
        ({"name": "squares", "cuont": 1}, "did you mean 'count'"),
    ],
)
def test_what_is_no_task_set_is_refused_with_its_name(module: Path, part: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(part | {"name": f"{module}:{part['name']}"})


def test_a_task_that_is_no_dict_is_named_when_it_is_taken(module: Path) -> None:
    tasks = load(f"{module}:numbers")
    with pytest.raises(ConfigError, match=r"task 1 of .*numbers' is a int: 2"):
        tasks[1]


def test_an_unknown_name_has_near_matches() -> None:
    with pytest.raises(ConfigError, match="did you mean 'arithmetic'"):
        load("arithmetik")
