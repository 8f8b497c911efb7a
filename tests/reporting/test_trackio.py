"""The ``trackio`` tracker fills the store that ``trackio show`` reads: curves, config, traces and summary."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.reporting.tracked import configured, track

from agentrl.config.models import Config
from agentrl.errors import ConfigError, PluginError
from agentrl.plugins import Plugins
from agentrl.reporting.trackers import Trackers


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of its own with a token of Hugging Face, and no way to any network."""
    home = tmp_path_factory.mktemp("home")

    def refuse(*asked: Any, **_: Any) -> None:
        pytest.fail(f"a connection: {asked}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setenv("HF_TOKEN", "hf_not_a_token")
        for name in ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            patch.delenv(name, raising=False)
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield home


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run that was interrupted after four steps, and one more session that went on from the second."""
    config = configured(tmp_path_factory.mktemp("run"), name="trackio", project="sums", tags=["a"], episodes_every=2)
    (note,) = track(config, (1, 2, 3, 4), outcome="interrupted")
    store = config.run.dir / "mine" / "trackio"
    assert note == f"tracker trackio: look at it with `TRACKIO_DIR={store} trackio show --project sums`"
    track(config, (3, 4, 5, 6), resumed_from=2, first=100)
    return config


def logs(config: Config, project: str = "sums") -> list[dict[str, Any]]:
    """The rows of the run, as the package reads them."""
    import trackio

    assert config.run.dir in trackio.TRACKIO_DIR.parents
    return trackio.SQLiteStorage.get_logs(project, "mine")


def test_a_resumed_run_goes_on_with_the_same_run_and_forgets_what_comes_again(written: Config) -> None:
    import trackio

    rows = logs(written)
    rewards = {row["step"]: row["reward/mean"] for row in rows if "reward/mean" in row}
    assert rewards == {1: 1, 2: 2, 3: 103, 4: 104, 5: 105, 6: 106}
    evaluated = [(row["step"], row["evaluation/reward"]) for row in rows if "evaluation/reward" in row]
    assert evaluated == [(0, 0), (2, 0.5), (4, 1), (6, 1.5)]
    (record,) = trackio.SQLiteStorage.get_run_records("sums")
    assert record["name"] == "mine"


def test_it_holds_the_config_and_one_summary(written: Config) -> None:
    import trackio

    config = trackio.SQLiteStorage.get_run_config("sums", "mine")
    assert config["training"]["learning_rate"] == "auto"
    assert config["tags"] == ["a"]
    (summary,) = [row for row in logs(written) if "summary/steps" in row]
    assert (summary["summary/reward_before"], summary["summary/reward_after"]) == (0.25, 0.75)
    assert "| outcome | completed |" in str(summary["summary/table"])


def test_traces_show_a_few_episodes_of_steps_that_are_due_and_of_every_evaluation(written: Config) -> None:
    import trackio

    traces = trackio.SQLiteStorage.get_traces("sums", "mine", limit=100)
    shown: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for trace in sorted(traces, key=lambda trace: trace["id"]):
        shown.setdefault((trace["key"], trace["step"]), []).append(trace)
    assert sorted(step for key, step in shown if key == "episodes/train") == [2, 4, 6]
    assert sorted(step for key, step in shown if key == "episodes/eval") == [0, 2, 4, 6]
    assert all(len(found) == 3 for found in shown.values())
    best = next(trace for trace in shown["episodes/eval", 2] if trace["metadata"]["episode"] == "eval-8-2-0")
    assert best["metadata"]["reward"] == 1
    assert [message["role"] for message in best["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert best["messages"][2]["reasoning_content"] == "Use the tool."
    assert best["messages"][2]["tool_calls"][0]["function"]["name"] == "add"
    broken = next(trace for trace in shown["episodes/train", 2] if trace["metadata"]["episode"] == "train-4-0-1")
    assert (broken["metadata"]["status"], broken["metadata"]["outcome"]) == ("error", "agent: it broke")


def test_nothing_is_written_elsewhere_and_nothing_printed(
    written: Config, surroundings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    track(configured(tmp_path, name="trackio", episodes=0), (1,))
    assert capsys.readouterr() == ("", "")
    assert [*surroundings.iterdir()] == []


def test_runs_may_share_a_store_and_each_of_a_process_may_have_its_own(tmp_path: Path) -> None:
    shared = tmp_path / "store"
    for name in ("one", "two"):
        track(configured(tmp_path / name, name="trackio", dir=str(shared), group="both"), (1,))
    import trackio

    assert (shared, 2) == (trackio.TRACKIO_DIR, len(trackio.SQLiteStorage.get_run_records("agentrl")))
    track(configured(tmp_path / "three", name="trackio"), (1,))
    assert (tmp_path / "three" / "runs" / "mine" / "trackio" / "agentrl.db").exists()
    assert not (tmp_path / "one" / "runs" / "mine" / "trackio").exists()


def test_a_store_elsewhere_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/space")
    with pytest.raises(ConfigError, match=r"TRACKIO_SPACE_ID is set .*trackio sync --project agentrl"):
        track(configured(tmp_path, name="trackio"), (1,))


def test_a_project_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracker trackio: .*registry-sums.* is not allowed.*another `project`"):
        track(configured(tmp_path, name="trackio", project="registry-sums"), (1,))


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    config = Config.model_validate({"trackers": ["trackio"]})
    with pytest.raises(PluginError, match=r"pip install 'agentrl-core\[trackio\]'") as caught:
        Trackers.build(Plugins(), config.trackers, pytest.fail)
    assert caught.value.exit_code == 3
