"""Numbers reach every tracker, and no tracker can sink a run."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agentrl.config.models import Config
from agentrl.errors import ConfigError, PluginError
from agentrl.plugins import Plugins
from agentrl.reporting.trackers import Trackers
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.runs.contract import RunInfo, Summary
from agentrl.runs.folder import RunFolder


class Recorder:
    """Remembers what it was told, and raises where it should."""

    def __init__(self, error: Exception | None = None, at: str = "log") -> None:
        self.told: list[tuple[Any, ...]] = []
        self._error = error
        self._at = at

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> None:
        self._hear("start", run, config)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._hear("log", step, metrics)

    def finish(self, outcome: str) -> None:
        self._hear("finish", outcome)

    def _hear(self, verb: str, *said: Any) -> None:
        self.told.append((verb, *said))
        if self._error is not None and verb == self._at:
            raise self._error


class Witness(Recorder):
    """Hears of episodes and of the summary, too."""

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> str:  # type: ignore[override]
        super().start(run, config)
        return "look\nhere"

    def log_episode(self, episode: Episode) -> None:
        self._hear("log_episode", episode)

    def log_summary(self, summary: Summary) -> None:
        self._hear("log_summary", summary)


EPISODE = Episode(EpisodeKey("train", 0, 0, 0), {}, "rewarded", 1.0)
SUMMARY = Summary("completed", 2)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate({"run": {"dir": str(tmp_path), "name": "mine"}})


def run_info(config: Config) -> RunInfo:
    return RunFolder(config.run.dir / "mine").info(config)


def run_all(trackers: Trackers, config: Config) -> None:
    with trackers:
        trackers.start(run_info(config), config)
        trackers.log(1, {"reward/mean": 0.5})
        trackers.log(2, {"reward/mean": 0.6})
        trackers.finish("completed")


def test_every_tracker_hears_everything_in_order(config: Config) -> None:
    recorders = [Recorder(), Recorder()]
    run_all(Trackers([("a", recorders[0]), ("b", recorders[1])], pytest.fail), config)
    for recorder in recorders:
        assert recorder.told == [
            ("start", run_info(config), config.model_dump(mode="json")),
            ("log", 1, {"reward/mean": 0.5}),
            ("log", 2, {"reward/mean": 0.6}),
            ("finish", "completed"),
        ]


@pytest.mark.parametrize("score", ["evaluation/reward", "evaluation/loss"])
def test_an_evaluation_and_a_step_have_no_name_in_common(config: Config, score: str) -> None:
    """A tracker that keeps one row a step would lose one of two numbers of a name."""
    recorder = Recorder()
    with Trackers([("mine", recorder)], pytest.fail) as trackers:
        trackers.start(run_info(config), config)
        trackers.log(2, {"reward/mean": 0.5, "cost/seconds": 1.0})
        trackers.log(2, {score: 0.5, "cost/seconds": 3.0})
    assert [told for told in recorder.told if told[0] == "log"] == [
        ("log", 2, {"reward/mean": 0.5, "cost/seconds": 1.0}),
        ("log", 2, {score: 0.5, "evaluation/cost/seconds": 3.0}),
    ]


@pytest.mark.parametrize("verb", ["start", "log", "finish"])
def test_one_that_raises_is_off_with_a_warning_and_counted(config: Config, verb: str) -> None:
    bad, good, warnings = Recorder(ZeroDivisionError("by\nzero"), verb), Recorder(), []
    trackers = Trackers([("bad", bad), ("good", good)], warnings.append)
    run_all(trackers, config)
    assert [told[0] for told in bad.told].count(verb) == 1
    assert bad.told[-1][0] == verb
    assert len(good.told) == 4
    assert trackers.failed == ["bad"]
    assert warnings == [
        f"tracker 'bad' raised in {verb} and is off for the rest of the run: ZeroDivisionError: by zero"
    ]


@pytest.mark.parametrize("verb", ["start", "log", "finish"])
def test_one_that_hangs_is_off_with_a_warning_and_counted(config: Config, verb: str) -> None:
    good, warnings, end = Recorder(), [], threading.Event()

    class Hung(Recorder):
        def _hear(self, heard: str, *said: Any) -> None:
            if heard == verb:
                assert end.wait(30)
            super()._hear(heard, *said)

    try:
        trackers = Trackers([("hung", Hung()), ("good", good)], warnings.append, patience=0.2)
        run_all(trackers, config)
    finally:
        end.set()
    assert len(good.told) == 4
    assert trackers.failed == ["hung"]
    (warning,) = warnings
    assert warning.startswith("tracker 'hung' ")
    assert f"{verb} within 0.2 s" in warning or "calls left 0.2 s later" in warning
    assert warning.endswith("is off for the rest of the run")


def run_whole(trackers: Trackers, config: Config) -> None:
    with trackers:
        trackers.start(run_info(config), config)
        trackers.log_episode(EPISODE)
        trackers.log(1, {"reward/mean": 0.5})
        trackers.finish("completed", SUMMARY)


def test_episodes_and_the_summary_reach_those_that_want_them_in_order(config: Config) -> None:
    witness, recorder = Witness(), Recorder()
    trackers = Trackers([("a", witness), ("b", recorder)], pytest.fail)
    run_whole(trackers, config)
    assert witness.told[1:] == [
        ("log_episode", EPISODE),
        ("log", 1, {"reward/mean": 0.5}),
        ("log_summary", SUMMARY),
        ("finish", "completed"),
    ]
    assert [told[0] for told in recorder.told] == ["start", "log", "finish"]
    assert trackers.notes == ["tracker a: look here"]


@pytest.mark.parametrize("verb", ["log_episode", "log_summary"])
def test_one_that_raises_for_an_episode_or_the_summary_is_off_with_a_warning(config: Config, verb: str) -> None:
    bad, good, warnings = Witness(ZeroDivisionError("oh"), verb), Witness(), []
    trackers = Trackers([("bad", bad), ("good", good)], warnings.append)
    run_whole(trackers, config)
    assert bad.told[-1][0] == verb
    assert len(good.told) == 5
    assert trackers.failed == ["bad"]
    assert warnings == [f"tracker 'bad' raised in {verb} and is off for the rest of the run: ZeroDivisionError: oh"]


def test_trackers_are_told_no_secrets(config: Config) -> None:
    secret = {
        "agent": {
            "name": "math",
            "env": ["TOKEN=hidden", "PLAIN"],
            "kwargs": {"api_key": "hidden", "token": "hidden", "max_tokens": 3, "answer_key": "b", "db_password": ""},
        },
        "reward": {"name": "judge", "url": "http://me:hidden@host/v1", "api_key_env": "JUDGE_KEY"},
    }
    config = Config.model_validate(config.model_dump(mode="json") | secret)
    recorder = Recorder()
    run_all(Trackers([("a", recorder)], pytest.fail), config)
    told = recorder.told[0][2]
    assert told["agent"]["env"] == ["TOKEN=…", "PLAIN"]
    kept = {"max_tokens": 3, "answer_key": "b", "db_password": ""}
    assert told["agent"]["kwargs"] == {"api_key": "…", "token": "…", **kept}
    assert told["reward"]["url"] == "http://me:…@host/v1"
    assert told["reward"]["api_key_env"] == "JUDGE_KEY"


def test_one_that_refuses_the_run_at_its_start_is_heard(config: Config) -> None:
    with pytest.raises(PluginError, match="log in first"):
        run_all(Trackers([("a", Recorder(PluginError("log in first"), "start"))], pytest.fail), config)


def test_a_run_that_breaks_off_still_finishes_its_trackers(config: Config) -> None:
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError), Trackers([("a", recorder)], pytest.fail):
        raise ZeroDivisionError("oh")
    assert recorder.told == [("finish", "failed: oh")]


def test_a_key_that_the_tracker_does_not_take_is_an_error() -> None:
    config = Config.model_validate({"trackers": [{"name": "tensorboard", "colour": "red"}]})
    with pytest.raises(ConfigError, match="colour"):
        Trackers.build(Plugins(), config.trackers, pytest.fail)
