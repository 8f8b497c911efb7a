"""The ``wandb`` tracker writes offline what ``wandb sync`` sends: curves, config, episodes and summary."""

from __future__ import annotations

import math
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.reporting.tracked import configured, track
from tests.reporting.wandb_files import config_of, exit_code, history, run_of, sessions, summary_of, table

from agentrl.config.models import Config
from agentrl.errors import ConfigError, PluginError
from agentrl.plugins import Plugins
from agentrl.reporting.trackers import Trackers

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def proxy() -> Iterator[socket.socket]:
    """Takes the calls of all processes that go to the network by a proxy, as those of wandb do; it answers none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture(scope="module", autouse=True)
def surroundings(proxy: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of its own, in which wandb has a key, and no way to the network."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        patch.setenv("WANDB_API_KEY", KEY)
        for name, place in {"CONFIG": "config", "CACHE": "cache"}.items():
            patch.setenv(f"WANDB_{name}_DIR", str(home / place))
        for name in ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_DIR"):
            patch.delenv(name, raising=False)
        yield home
        import wandb

        wandb.teardown()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run that was interrupted after four steps, and one more session that went on from the second."""
    config = configured(
        tmp_path_factory.mktemp("run"), name="wandb", mode="offline", project="sums", tags=["a"], episodes_every=2
    )
    (note,) = track(config, (1, 2, 3, 4), outcome="interrupted")
    assert note.startswith("tracker wandb: send it with `wandb sync ")
    track(config, (3, 4, 5, 6), resumed_from=2, first=100)
    return config


def test_a_session_holds_curves_config_and_summary(written: Config) -> None:
    first = sessions(written.run.dir / "mine")[0]
    rows = {row["_step"]: row for row in history(first)}
    assert [*rows] == [0, 1, 2, 3, 4]
    assert {step: row["reward/mean"] for step, row in rows.items() if step} == {1: 1, 2: 2, 3: 3, 4: 4}
    assert {step: row.get("evaluation/reward") for step, row in rows.items()} == {0: 0, 1: None, 2: 0.5, 3: None, 4: 1}
    assert rows[2]["evaluation/step"] == 2
    assert math.isnan(rows[1]["policy/entropy"])
    run = run_of(first)
    assert (run.project, run.display_name, [*run.tags]) == ("sums", "mine", ["a"])
    assert config_of(first)["training"]["learning_rate"] == "auto"
    summary = summary_of(first)
    assert (summary["outcome"], summary["reward_before"], summary["reward_after"]) == ("interrupted", 0.25, 0.75)
    assert summary["ledger"] == {"received": 16, "trained": 12}
    assert exit_code(first) == 1


def test_a_resumed_run_goes_on_with_the_same_run_and_repeats_nothing(written: Config) -> None:
    first, second = sessions(written.run.dir / "mine")
    assert run_of(second).run_id == run_of(first).run_id
    rows = history(second)
    assert [row["_step"] for row in rows] == [5, 6]
    assert [row["reward/mean"] for row in rows] == [105, 106]
    assert [row.get("evaluation/step") for row in rows] == [None, 6]
    assert summary_of(second)["outcome"] == "completed"
    assert exit_code(second) == 0


def test_tables_show_a_few_episodes_of_steps_that_are_due_and_of_every_evaluation(written: Config) -> None:
    first = sessions(written.run.dir / "mine")[0]
    rows = {row["_step"]: row for row in history(first)}
    assert [step for step, row in rows.items() if "episodes/train" in row] == [2, 4]
    shown = table(first, rows[2]["episodes/eval"])
    at = {name: index for index, name in enumerate(shown["columns"])}
    assert [row[at["episode"]] for row in shown["data"]] == ["eval-6-0-0", "eval-7-1-0", "eval-8-2-0"]
    assert [row[at["reward"]] for row in shown["data"]] == [0, 0.5, 1]
    conversation = shown["data"][0][at["conversation"]]
    assert conversation.startswith("system: Add.\n\nuser: 0 + 1?\n\nassistant: <think>\nUse the tool.\n</think>\nadd({")
    assert conversation.endswith("tool: 1\n\nassistant: It is 1.")
    trained = table(first, rows[2]["episodes/train"])["data"]
    assert [row[at["episode"]] for row in trained] == ["train-4-0-0", "train-5-1-0", "train-4-0-1"]
    assert trained[2][at["outcome"]] == "agent: it broke"


def test_all_of_it_is_in_the_run_folder_without_the_key_and_nothing_went_to_the_network(
    written: Config, proxy: socket.socket, surroundings: Path
) -> None:
    with pytest.raises(BlockingIOError):
        proxy.accept()
    folder = written.run.dir / "mine"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert not [path for path in surroundings.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert [path for path in files if path.is_relative_to(folder / "wandb" / "data" / "artifacts")]
    assert not [path for path in surroundings.rglob("*") if path.is_file() and path.suffix != ".log"]


def test_with_rewind_the_server_is_told_to_forget_what_comes_again(tmp_path: Path) -> None:
    config = configured(tmp_path, name="wandb", mode="offline", rewind=True, episodes=0)
    track(config, (1, 2, 3, 4))
    track(config, (3, 4), resumed_from=2)
    first, second = sessions(config.run.dir / "mine")
    assert run_of(second).run_id == run_of(first).run_id
    point = config_of(second)["_wandb"]["branch_point"]
    assert point == {"run_id": run_of(first).run_id, "step": 2}
    assert [row["_step"] for row in history(second)] == [3, 4]
    assert not any("episodes/eval" in row for row in history(first))


def test_secrets_of_the_config_are_not_sent(tmp_path: Path) -> None:
    config = configured(tmp_path, name="wandb", mode="offline", episodes=0)
    agent = config.agent.model_copy(update={"env": ["SERVICE_KEY=hidden"], "kwargs": {"api_key": "hidden", "turns": 3}})
    track(config.model_copy(update={"agent": agent}), (1,))
    (file,) = sessions(config.run.dir / "mine")
    sent = config_of(file)["agent"]
    assert (sent["env"], sent["kwargs"]) == (["SERVICE_KEY=…"], {"api_key": "…", "turns": 3})
    assert b"hidden" not in file.read_bytes()


def test_an_evaluation_that_ends_late_keeps_its_step(tmp_path: Path) -> None:
    config = configured(tmp_path, name="wandb", mode="offline", episodes=0)
    with Trackers.build(Plugins(), config.trackers, pytest.fail) as trackers:
        from agentrl.runs.folder import RunFolder

        trackers.start(RunFolder.create(config).info(config), config)
        for step in (1, 2, 3):
            trackers.log(step, {"reward/mean": step})
        trackers.log(2, {"evaluation/reward": 0.5})
    (file,) = sessions(config.run.dir / "mine")
    assert [(row["_step"], row.get("evaluation/step")) for row in history(file)] == [(1, None), (2, None), (3, 2)]


def test_online_without_a_key_the_run_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: socket.socket
) -> None:
    import wandb

    wandb.teardown()  # It reads the environment once.
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(PluginError, match=r"no API key for \S+ .*wandb login.*mode: offline") as caught:
        track(configured(tmp_path, name="wandb"), (1,))
    assert caught.value.exit_code == 3
    with pytest.raises(BlockingIOError):
        proxy.accept()


def test_a_mode_that_there_is_not_is_an_error() -> None:
    config = Config.model_validate({"trackers": [{"name": "wandb", "mode": "offlne"}]})
    with pytest.raises(ConfigError, match="offline"):
        Trackers.build(Plugins(), config.trackers, pytest.fail)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = Config.model_validate({"trackers": ["wandb"]})
    with pytest.raises(PluginError, match=r"pip install 'agentrl-core\[wandb\]'") as caught:
        Trackers.build(Plugins(), config.trackers, pytest.fail)
    assert caught.value.exit_code == 3
