"""A real run reaches trackers as its folder has it, and goes on with them when it is resumed."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.reporting.wandb_files import history, run_of, sessions, summary_of, table

from agentrl import Trainer, load_config, open_run
from agentrl.reporting.plain import PlainReporter
from agentrl.runs.contract import MetricsLine
from agentrl.runs.reader import Run

SMALL = (
    *("rollout.tasks_per_step=2", "rollout.group_size=2", "rollout.max_tokens=24", "training.checkpoint_every=2"),
    *("evaluation.tasks=2", "evaluation.every=1", "run.name=tracked"),
    "trackers=[{name: wandb, mode: offline, episodes: 2, episodes_every: 1}, {name: trackio, episodes: 2}]",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Two steps, and, after a resume, a third."""
    folder = tmp_path_factory.mktemp("tracked")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CONFIG", "CACHE"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder / name))
        for name in ("WANDB_MODE", "WANDB_DATA_DIR", "TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            patch.delenv(name, raising=False)
        for steps in (2, 3):
            config = load_config(None, f"run.dir={folder}", f"training.steps={steps}", *SMALL, environ={})
            resumed = folder / "tracked" if steps == 3 else None
            with Trainer(config, reporter=PlainReporter(said), run=resumed) as trainer:
                assert trainer.train("math").outcome == "completed"
        assert said.getvalue().count("tracker wandb: send it with `wandb sync ") == 2
        assert said.getvalue().count("tracker trackio: look at it with `TRACKIO_DIR=") == 2
        assert "off for the rest of the run" not in said.getvalue()
        yield open_run(folder / "tracked")
        import wandb

        wandb.teardown()


def same(told: dict[str, Any], line: MetricsLine) -> bool:
    """Whether a tracker has every number of a line, one that was not finite aside."""
    logged = {name: value for name, value in line.metrics.items() if value is not None}
    if line.is_evaluation:
        logged = {f"evaluation/{name.removeprefix('evaluation/')}": value for name, value in logged.items()}
    return all(math.isclose(float(told[name]), value, rel_tol=1e-12) for name, value in logged.items())


def test_every_number_of_the_run_is_there_once(run: Run) -> None:
    import trackio

    one, two = sessions(run.path)
    assert run_of(one).run_id == run_of(two).run_id
    rows = {row["_step"]: row for file in (one, two) for row in history(file)}
    assert [*rows] == [0, 1, 2, 3]
    stored = trackio.SQLiteStorage.get_logs("agentrl", "tracked")
    lines = run.metrics()
    assert len([line for line in lines if line.is_evaluation]) == 4
    for line in lines:
        assert same(rows[line.step], line)
        name = "evaluation/reward" if line.is_evaluation else "reward/mean"
        (found,) = [row for row in stored if row["step"] == line.step and name in row]
        assert same(found, line)
    assert run.summary is not None
    assert summary_of(two)["reward_after"] == run.summary.reward_after
    (summary,) = [row for row in stored if "summary/steps" in row]
    assert (summary["summary/steps"], summary["summary/reward_after"]) == (3, run.summary.reward_after)


def test_the_episodes_that_are_shown_are_those_of_the_store(run: Run) -> None:
    import trackio

    keys = {str(row.key): row.reward for row in run.episodes()}
    file = sessions(run.path)[0]
    shown: dict[str, float] = {}
    for row in history(file):
        for name in ("episodes/train", "episodes/eval", "episodes/eval-greedy"):
            if name in row:
                told = table(file, row[name])
                at = {column: index for index, column in enumerate(told["columns"])}
                shown |= {each[at["episode"]]: each[at["reward"]] for each in told["data"]}
    assert len(shown) == 2 * 2 + 3 * 4
    assert shown.items() <= keys.items()
    traces = trackio.SQLiteStorage.get_traces("agentrl", "tracked", limit=100)
    assert {trace["metadata"]["episode"] for trace in traces if trace["key"] == "episodes/eval"} <= {*keys}
    assert len([trace for trace in traces if trace["key"] == "episodes/eval"]) == 4 * 2


def test_all_that_trackers_wrote_is_in_the_run_folder(run: Run) -> None:
    assert (run.path / "trackio" / "agentrl.db").exists()
    assert (run.path / "wandb.json").exists()
    beside = {path.name for path in run.path.parent.iterdir()} - {"tracked"}
    assert beside <= {"CONFIG", "CACHE"}
    assert not [path for path in Path.cwd().glob("wandb*") if path.is_dir()]
