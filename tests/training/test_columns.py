"""Columns of models in whole runs: what is resumed has the reference and the value head that it had."""

from __future__ import annotations

import io
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.algorithms.algorithms import build, grpo
from tests.algorithms.episodes import wandering_groups
from tests.training.killing import SMALL, told

from agentrl import Trainer, load_config, open_run
from agentrl.config.models import Config
from agentrl.errors import ConfigError
from agentrl.learner.frozen import FrozenModel
from agentrl.learner.learner import Learner
from agentrl.plugins import Plugins
from agentrl.reporting.plain import PlainReporter
from agentrl.training.columns import Columns
from agentrl.training.online import with_batch_baseline
from agentrl.training.sources import Sources

VOCABULARY = 64
PPO = "algorithm={name: ppo, penalties: [{name: kl, coefficient: 0.05}, {name: entropy, coefficient: 0.001}]}"


def trained(trainer: Trainer) -> None:
    with trainer:
        assert trainer.train().outcome == "completed"


def test_repeated_steps_have_the_reference_the_value_head_and_the_updates_that_they_had_to_the_bit(
    tmp_path: Path,
) -> None:
    settings = (
        *(*SMALL, "agent=math", PPO, "training.minibatches=2", "training.steps=4", "training.checkpoint_every=2"),
        *("training.learning_rate=0.0001", "tasks.eval=null", f"run.dir={tmp_path}"),
    )
    quiet = PlainReporter(io.StringIO())
    trained(Trainer(load_config(None, *settings, "run.name=whole", environ={}), reporter=quiet))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    # as it was left by a kill in its last step
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step-000004")
    (stopped / "summary.json").unlink()
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    (stopped / "metrics.jsonl").write_text("\n".join(lines[:3]) + "\n")
    trained(Trainer.resume(stopped, reporter=quiet))

    metrics = [{line.step: told(line.metrics) for line in open_run(folder).steps()} for folder in (whole, stopped)]
    assert metrics[0] == metrics[1]
    weights = [(folder / "checkpoints/step-000004/model.safetensors").read_bytes() for folder in (whole, stopped)]
    assert weights[0] == weights[1]
    heads = [
        torch.load(folder / "checkpoints/step-000004/learner.pt")["value_head"]["weight"] for folder in (whole, stopped)
    ]
    assert torch.equal(heads[0], heads[1])
    steps = metrics[0]
    assert steps[1]["penalty/kl"] == pytest.approx(0, abs=0.01)  # the second update is a little away
    assert steps[1]["penalty/kl"] < steps[4]["penalty/kl"] < 1
    assert all(step["learner/updates"] == 2 for step in steps.values())
    assert steps[1]["value/mean"] == 0 != steps[4]["value/mean"]
    assert sum(step["ledger/without_difference"] for step in steps.values()) == 0
    assert sum(step["groups/zero_variance"] for step in steps.values()) > 0


def config_of(algorithm: object, **training: object) -> Config:
    return Config.model_validate({"agent": "math", "algorithm": algorithm, "training": {"device": "cpu", **training}})


def test_under_an_adapter_the_reference_is_the_base(tiny_folder: Path) -> None:
    config = config_of({"name": "grpo", "penalties": ["kl"]}, lora={"rank": 2}, learning_rate=1e-2)
    algorithm = grpo(penalties=["kl"])
    learner = Learner(tiny_folder, config.training, algorithm.loss, 0)
    sources = Sources.of(algorithm, config, Plugins(), tiny_folder)
    assert sources.reference is None
    columns = Columns.load(algorithm, learner, sources, config)
    groups = wandering_groups(random.Random(3), VOCABULARY)
    first = columns.prepare(groups)
    assert learner.step(first.batch).metrics["penalty/kl"] == pytest.approx(0, abs=1e-9)
    second = columns.prepare(groups)
    np.testing.assert_array_equal(second.batch.extra["reference"], first.batch.extra["reference"])
    base = FrozenModel(tiny_folder, config.training).score(first.batch.targets, first.batch.paths).logprob
    np.testing.assert_allclose(first.batch.extra["reference"], base, atol=1e-5)
    assert learner.step(second.batch).metrics["penalty/kl"] > 1e-6
    moved = learner.score(first.batch.targets, first.batch.paths).logprob
    assert np.abs(moved - base).max() > 1e-3


def test_the_reference_of_a_resumed_run_is_the_model_that_it_began_with(tiny_folder: Path, tmp_path: Path) -> None:
    algorithm = grpo(penalties=["kl"])
    config = config_of("grpo").naming("model", str(tiny_folder))
    assert Sources.of(algorithm, config, Plugins(), tmp_path).reference == tmp_path
    assert Sources.of(algorithm, config, Plugins(), tmp_path, is_original=False).reference == tiny_folder
    assert Sources.of(grpo(), config, Plugins(), tmp_path).reference is None
    gone = config.naming("model", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="gone"):
        Sources.of(algorithm, gone, Plugins(), tmp_path, is_original=False)


def test_a_column_that_nothing_gives_is_refused(tiny_folder: Path) -> None:
    class Curious:
        metric, coefficient, columns = "penalty/curious", 1.0, ("referense",)

        def __call__(self, terms):
            return terms.logprob

    algorithm = replace(grpo(), penalties=(Curious(),))
    with pytest.raises(ConfigError, match=r"column 'referense'.*did you mean 'reference'"):
        Sources.of(algorithm, config_of("grpo"), Plugins(), tiny_folder)


def test_sessions_that_people_open_keep_advantages_of_tokens() -> None:
    algorithm = build("ppo")
    assert with_batch_baseline(algorithm) is algorithm
