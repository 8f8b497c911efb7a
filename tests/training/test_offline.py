"""Training from the stored episodes of another run: the same learner, and nothing is sampled."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from agentrl import Trainer, load_config, open_run
from agentrl.errors import ConfigError, RunError
from agentrl.reporting.plain import PlainReporter
from agentrl.runs.contract import Summary

REWARDS = """
def broken(answer):
    raise ValueError("not one")

def by_sample(answer, *, episode):
    if episode.key.sample == 0:
        raise ValueError("not this one")
    return float(episode.key.sample % 2)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps beside the rollout, so that some of its tokens are stale."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "rewards.py").write_text(REWARDS)
    small = ("training.steps=4", "rollout.tasks_per_step=3", "rollout.group_size=4", "rollout.max_tokens=12")
    settings = (f"run.dir={folder / 'runs'}", "run.name=sampled", "rollout.max_staleness=1", *small)
    config = load_config(None, *settings, "tasks.eval=null", "training.learning_rate=0.003", environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        trainer.train("math")
    return folder


def replayed(folder: Path, name: str, *settings: str, rescored: bool = False) -> Summary:
    run = folder / "runs" / "sampled"
    config = load_config(run / "config.yaml", environ={})
    config = load_config(run / "config.yaml", f"run.dir={folder / 'runs'}", f"run.name={name}", *settings, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        return trainer.replay(run, rescored=rescored)


def weights(folder: Path, name: str) -> bytes:
    newest = open_run(folder / "runs" / name).newest_checkpoint()
    assert newest is not None
    return (newest.path / "model.safetensors").read_bytes()


def test_the_algorithm_of_the_run_makes_the_same_weights_again(folder: Path) -> None:
    summary = replayed(folder, "again")
    assert (summary.outcome, summary.steps) == ("completed", 4)
    assert weights(folder, "again") == weights(folder, "sampled")
    runs = [open_run(folder / "runs" / name) for name in ("sampled", "again")]
    losses = [[line.metrics["policy/loss"] for line in run.steps()] for run in runs]
    staleness = [[line.metrics["staleness/mean"] for line in run.steps()] for run in runs]
    assert losses[0] == losses[1]
    assert staleness[0] == staleness[1]
    assert max(value or 0.0 for value in staleness[1]) > 0
    keys = [{str(row.key) for row in run.episodes(phase="train") if row.trained_step is not None} for run in runs]
    assert keys[0] == keys[1]
    records = [{key: repr(run.trained(key)) for key in keys[0]} for run in runs]
    assert records[0] == records[1]
    assert "None" not in records[1].values()
    assert (runs[1].state, runs[1].info.kind) == ("completed", "replay")


def test_another_algorithm_trains_from_the_same_episodes_with_its_correction(folder: Path) -> None:
    settings = ("algorithm={name: rloo, correction: truncated}", "training.learning_rate=0.02", "training.steps=3")
    summary = replayed(folder, "by-rloo", *settings)
    assert (summary.outcome, summary.steps) == ("completed", 3)
    assert weights(folder, "by-rloo") != weights(folder, "sampled")
    steps = open_run(folder / "runs" / "by-rloo").steps()
    apart = [line.metrics["policy/mismatch_kl"] or 0.0 for line in steps]
    assert apart[0] < 1e-6 < apart[-1]  # The first weights are those that sampled, and later ones are others.


def test_episodes_are_stored_with_the_rewards_that_they_are_trained_with(folder: Path) -> None:
    settings = (f"reward={folder / 'rewards.py'}:by_sample", "replay.answer=last-message", "training.steps=2")
    summary = replayed(folder, "rescored", *settings, rescored=True)
    run = open_run(folder / "runs" / "rescored")
    for row in run.episodes(phase="train"):
        expected = ("failed", None) if row.key.sample == 0 else ("rewarded", float(row.key.sample % 2))
        assert (row.outcome, row.reward) == expected
    assert summary.failed == 6
    assert summary.ledger["failed"] == 6
    assert summary.ledger["received"] == 24
    assert all("replay/changed" in line.metrics for line in run.steps())


def test_a_reward_that_always_fails_ends_the_run(folder: Path) -> None:
    settings = (f"reward={folder / 'rewards.py'}:broken", "replay.answer=last-message")
    with pytest.raises(RunError, match=r"episodes failed, over the failure budget.*not one"):
        replayed(folder, "broken", *settings, rescored=True)
    assert open_run(folder / "runs" / "broken").steps() == []


def test_such_a_run_is_not_resumed_and_a_run_without_steps_is_refused(folder: Path) -> None:
    run = folder / "runs" / "again"
    config = load_config(run / "config.yaml", "training.steps=4", environ={})
    with pytest.raises(ConfigError, match="is not resumed"):
        Trainer(config, reporter=PlainReporter(io.StringIO()), run=run).train()
    with pytest.raises(ConfigError, match=r"exists already.*run of agentrl replay is not"):
        replayed(folder, "again")
    empty = load_config(None, f"run.dir={folder / 'runs'}", "run.name=empty", "training.steps=0", "tasks.eval=null")
    with Trainer(empty, reporter=PlainReporter(io.StringIO())) as trainer:
        trainer.train("math")
        with pytest.raises(ConfigError, match="has stored no step to train from"):
            trainer.replay(folder / "runs" / "empty")


def test_a_model_of_another_vocabulary_is_refused(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"are token ids of model 'tiny', and model .* has another vocabulary"):
        replayed(folder, "other-vocabulary", f"model={other}")


def test_what_does_not_fit_the_memory_is_refused_before_a_folder_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrl.training.plan.free_memory", lambda: (1_000_000, True))
    with pytest.raises(ConfigError, match="the run does not fit the memory"):
        replayed(folder, "too-large")
    assert not (folder / "runs" / "too-large").exists()
