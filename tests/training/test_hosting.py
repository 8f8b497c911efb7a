"""Whether a run that has lost a process goes on by itself: where that helps, and so often as the config lets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrl.config.models import Config
from agentrl.errors import HostLostError, RunError
from agentrl.hosting.local import LocalHosts
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog
from agentrl.training.hosting import Hosting


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    config = Config()
    return RunFolder.create(config.setting("run", config.run.model_copy(update={"dir": tmp_path, "name": "run"})))


def lost() -> HostLostError:
    return HostLostError("learner rank 1 was ended by SIGKILL")


def reach(folder: RunFolder, step: int) -> None:
    with MetricsLog(folder.metrics) as metrics:
        metrics.append(step, {"policy/loss": 1.0})


def hosting(folder: RunFolder | None, most: int = 3) -> Hosting:
    run = Hosting(LocalHosts(), most)
    if folder is not None:
        run.loaded(folder.path)
    return run


def test_it_goes_on_so_often_as_the_config_lets_it_where_it_comes_further(folder: RunFolder) -> None:
    run = hosting(folder, most=2)
    for step in (3, 5):
        reach(folder, step)
        error = lost()
        assert run.goes_on(error)
        assert run.goes_on(error)  # Asked again, it says the same.
        assert run.advice(error) is None
        run.restarted()
        run.loaded(folder.path)
    reach(folder, 9)
    error = lost()
    assert not run.goes_on(error)
    assert run.advice(error) == "the run has gone on by itself training.restarts=2 times already"


def test_one_that_is_lost_twice_in_the_same_step_is_given_up(folder: RunFolder) -> None:
    run = hosting(folder)
    assert run.goes_on(lost())
    assert run.restarted() == "restart 1 of training.restarts=3"
    assert run.goes_on(lost())  # It had not come to the step again.
    assert run.restarted() == "restart 2 of training.restarts=3"
    run.loaded(folder.path)
    again = lost()
    assert not run.goes_on(again)
    assert run.advice(again) == "the run does not go on by itself: it has lost a process twice in step 1"


def test_one_that_is_lost_in_an_earlier_step_than_before_goes_on(folder: RunFolder, tmp_path: Path) -> None:
    """The steps since the newest checkpoint are made again, and a process may be lost in any of them."""
    run = hosting(folder)
    reach(folder, 9)
    assert run.goes_on(lost())
    for step in (4, 9):
        run.restarted()
        folder.metrics.unlink()
        reach(folder, step)
        run.loaded(folder.path)
        error = lost()
        assert run.goes_on(error) is (step == 4)
    assert run.advice(error) == "the run does not go on by itself: it has lost a process twice in step 10"


@pytest.mark.parametrize(
    ("error", "most", "told"),
    [
        (lost(), 3, "the run does not go on by itself: it had not loaded its model"),
        (lost(), 0, None),
        (RunError("a pass of 8192 tokens does not fit the memory"), 3, None),
    ],
    ids=["while it starts", "where nobody wants it", "another error"],
)
def test_what_starting_again_cannot_mend_ends_it(error: RunError, most: int, told: str | None) -> None:
    run = hosting(None, most)
    assert not run.goes_on(error)
    assert run.advice(error) == told
