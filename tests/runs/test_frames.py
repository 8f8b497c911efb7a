"""What a run has left, for pandas and for the datasets library."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator

import pytest
from tests.runs.test_reader import EPISODES
from tests.runs.test_trained import made

from agentrl import open_run
from agentrl.config.models import Config
from agentrl.extras import MissingExtra
from agentrl.runs.contract import Membership
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.reader import Run
from agentrl.runs.store import EpisodeStore


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = RunFolder.create(
        Config.model_validate({"run": {"dir": str(tmp_path_factory.mktemp("runs")), "name": "mine"}})
    )
    with EpisodeStore(folder.episodes) as store, MetricsLog(folder.metrics, clock=lambda: 5.0) as log:
        store.submit(EPISODES)
        store.begin_step(Membership(1, (0, 1)))
        store.record_training(1, [made(EPISODES[2], 1.0, math.nan)]).result()
        log.append(1, {"reward/mean": 0.5, "policy/loss": math.nan})
        log.append(1, {"evaluation/reward": 0.25})
        yield open_run(folder.path)


def test_metrics_are_a_frame_with_a_row_a_line(run: Run) -> None:
    frame = run.metrics_frame()
    assert list(frame.columns) == ["step", "time", "reward/mean", "policy/loss", "evaluation/reward"]
    assert frame["reward/mean"].dropna().to_list() == [0.5]
    assert frame["policy/loss"].dtype == "float64"
    assert frame["evaluation/reward"].isna().to_list() == [True, False]


def test_episodes_are_a_frame_of_the_rows_that_lists_show(run: Run) -> None:
    frame = run.episodes_frame(phase="train", sort="reward", descending=True, limit=3)
    rows = run.episodes(phase="train", sort="reward", descending=True, limit=3)
    assert frame["key"].to_list() == [str(row.key) for row in rows]
    assert frame["reward"].to_list() == [row.reward for row in rows]
    whole = run.episodes_frame()
    assert len(whole) == len(EPISODES)
    # A number that is missing stays missing, and a whole number whole.
    assert (whole["trained_step"].dtype, int(whole["trained_step"].isna().sum())) == ("Int64", 4)
    assert whole.groupby("outcome")["reward"].mean().dropna().to_dict() == {
        "rewarded": pytest.approx(0.42857, abs=1e-4)
    }
    assert run.episodes_frame(task=99)["surprise"].dtype == "Float64"


def test_episodes_are_a_dataset_with_messages_and_tokens(run: Run) -> None:
    dataset = run.dataset(phase="train")
    assert dataset["key"][:] == [str(row.key) for row in run.episodes(phase="train")]
    first = dataset[0]
    assert json.loads(first["data"]) == {"task": 1}
    assert [(each["role"], each["content"]) for each in first["messages"]] == [
        ("user", "What is 1 plus two?"),
        ("assistant", "maybe 0"),
    ]
    assert (first["token_ids"], first["token_logprobs"], first["token_versions"]) == ([4, 5], [-0.5, -0.25], [0, 0])
    assert first["token_fates"] == ["trained", "unrewarded"]
    assert first["trained_advantages"][0] == 1.0
    assert math.isnan(first["trained_advantages"][1])
    assert (dataset[1]["token_fates"], dataset[1]["fate"]) == ([], None)
    assert run.dataset(tokens=False, outcome="failed").column_names[-1] == "messages"
    assert len(run.dataset(task=99)) == 0


def test_many_episodes_are_one_dataset(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrl.runs.frames._AT_ONCE", 4)
    assert run.dataset()["key"][:] == [str(row.key) for row in run.episodes()]


@pytest.mark.parametrize(
    ("package", "ask"), [("pandas", "metrics_frame"), ("pandas", "episodes_frame"), ("datasets", "dataset")]
)
def test_a_library_that_is_missing_is_named_with_what_brings_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, package: str, ask: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"{package} is not installed: it comes with agentrl-core\[train\]"):
        getattr(run, ask)()
