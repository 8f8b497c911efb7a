"""One task from the config to a checkpoint: how much code it crosses, and that docs/spine.md tells its way truly."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from tests.trace import Crossing, Trace, trace

from agentrl import Trainer, load_config
from agentrl.reporting.plain import PlainReporter

PAGE = Path(__file__).parents[1] / "docs" / "spine.md"
ONE_TASK = ("training.steps=1", "rollout.tasks_per_step=1", "rollout.group_size=4", "tasks.eval=null")
LISTENERS = ("reporting/", "errors.py", "agents/watchdog.py")
"""Reporting, what it shortens its lines with, and the watchdog are told of what happens, and take no part in it."""
SECTION = "From the task to the gradient"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A real run of one task, one step and one checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    taken, computed = Crossing("tasks/arithmetic.py", "Arithmetic.__getitem__"), "learner/optimiser.py"
    with trace(lambda each: each == taken, lambda each: each.file == computed) as traced:
        config = load_config(None, *ONE_TASK, f"run.dir={folder}", environ={})
        with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
            summary = trainer.train("math")
    assert summary.steps == 1
    assert summary.checkpoint is not None
    return traced


def test_a_run_crosses_few_files(run: Trace):
    # 167 before the rooms were made and 93 after it; what several protocols share, what lets groups roll out beside the
    # learner, what counts the cost, what holds episodes back before a busy engine, and what lets the engine compute
    # with the learner's weights, is read in modules of its own.
    assert len(run.files) <= 167, sorted(run.files)


def test_a_task_crosses_few_files_on_its_way_to_the_gradient(run: Trace):
    assert len(on_the_way(run)) <= 90, sorted(on_the_way(run))  # 44 with one protocol, which shared nothing.


def on_the_way(run: Trace) -> set[str]:
    return {each.file for each in run.between if not each.file.startswith(LISTENERS)}


@pytest.mark.parametrize("section", ["Set-up", SECTION, "From the gradient to the checkpoint"])
def test_the_page_names_what_the_run_crosses_in_its_order(run: Trace, section: str):
    text = PAGE.read_text(encoding="utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    named = [Crossing(file, function) for file, function in re.findall(r"`([\w/]+\.py)` · `([\w.]+)`", text)]
    order = list(run.between if section == SECTION else run.everything)
    assert named
    assert [each for each in named if each not in order] == []
    assert [order.index(each) for each in named] == sorted(order.index(each) for each in named)


def test_the_page_says_how_much_it_is(run: Trace):
    said = [int(number) for number in re.findall(r"\*\*(\d+) files\*\*", PAGE.read_text(encoding="utf-8"))]
    assert said == [pytest.approx(len(run.files), abs=3), pytest.approx(len(on_the_way(run)), abs=2)]
