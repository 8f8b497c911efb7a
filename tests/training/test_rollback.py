"""What a run does about a trouble, with an agent whose reward makes the policy collapse: it says always the same."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from agentrl import Trainer, load_config, open_run
from agentrl.errors import ConfigError, RunError
from agentrl.health.findings import ROLLED_BACK
from agentrl.reporting.plain import PlainReporter

COLLAPSING = (
    *("training.steps=30", "training.learning_rate=0.01", "rollout.tasks_per_step=2", "rollout.group_size=8"),
    *("rollout.max_tokens=6", "evaluation.every=4", "evaluation.tasks=4", "training.checkpoint_every=4"),
    *("health.truncation=off", "health.zero_variance=off", "health.mismatch_kl=off", "run.name=run"),
    "training.keep=100",
)


async def ones(data, *, base_url, api_key, http_client):
    """The more of the answer is the digit 1, the better; so the policy soon writes nothing else."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    question = [{"role": "user", "content": data["question"]}]
    answer = (await client.chat.completions.create(model="m", messages=question)).choices[0].message.content or ""
    return answer.count("1") / max(len(answer), 1)


def train(folder: Path, *settings: str) -> str:
    """Train until the run ends by its rule, and return what was told."""
    told = io.StringIO()
    config = load_config(None, f"run.dir={folder}", *COLLAPSING, *settings, environ={})
    with Trainer(config, reporter=PlainReporter(told)) as trainer, pytest.raises(RunError) as failed:
        trainer.train(ones)
    return f"{told.getvalue()}\n{failed.value}"


@pytest.fixture(scope="module", params=[0, 1], ids=["synchronous", "asynchronous"])
def collapsed(request, tmp_path_factory) -> tuple[Path, str, int]:
    """The folder of a run that went back once and stopped then, what it told, and its bound of staleness."""
    folder = tmp_path_factory.mktemp("collapsed")
    rule = "health.entropy_collapse={action: rollback, threshold: 0.2}"
    told = train(folder, rule, "health.most_rollbacks=1", f"rollout.max_staleness={request.param}")
    return folder / "run", told, request.param


def test_a_run_goes_back_to_its_best_checkpoint_under_a_new_version_and_stops_when_that_does_not_help(collapsed):
    folder, told, staleness = collapsed
    run = open_run(folder)
    (line,) = [line for line in run.steps() if ROLLED_BACK in line.metrics]
    best, version = int(line.metrics[ROLLED_BACK]), line.step + 1

    assert f"going back to step-{best:06d}, the best checkpoint by evaluation" in told
    assert "health: entropy_collapse: policy/entropy is " in told
    assert "the run has gone back 1 times already" in told

    # The number of the version goes on, and nothing else was made or trained under it.
    steps = [line.step for line in run.steps()]
    assert version not in steps
    assert steps == sorted(set(steps))
    saved = {checkpoint.step: checkpoint.path for checkpoint in run.checkpoints()}
    assert version in saved
    before, after = (load_file(saved[step] / "model.safetensors") for step in (best, version))
    assert before.keys() == after.keys()
    assert all(bool((before[name] == after[name]).all()) for name in before)

    # What the next step trained was sampled within the bound.
    trained = [episode for episode in run.load_episodes(phase="train") if episode.trained_step is not None]
    for episode in trained:
        versions = [version for span in episode.tree.spans if span.sampled for version in span.sampled.versions]
        assert episode.trained_step - 1 - min(versions) <= staleness
    assert max(episode.trained_step for episode in trained) > version

    # What was spent on the steps that were given up is in the sum.
    calls = [call for episode in run.load_episodes(phase="train") for call in episode.calls]
    used = run.cost.usage("policy", "rollout")
    assert used.completion_tokens >= sum(call.completion_tokens for call in calls) > 0
    assert sum(line.metrics["seconds/learner"] or 0 for line in run.steps()) == pytest.approx(
        run.cost.stage_seconds()["learner"]
    )

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["outcome"].startswith("failed: health: entropy_collapse: ")
    assert Path(summary["checkpoint"]).name == f"step-{summary['steps']:06d}"


def test_a_run_that_is_resumed_from_before_it_went_back_goes_back_again(collapsed, tmp_path):
    folder, *_ = collapsed
    copied = tmp_path / "run"
    shutil.copytree(folder, copied)
    before = open_run(folder)
    (line,) = [line for line in before.steps() if ROLLED_BACK in line.metrics]
    for checkpoint in before.checkpoints():
        if checkpoint.step > line.step:
            shutil.rmtree(copied / "checkpoints" / checkpoint.path.name)
    with Trainer.resume(copied, reporter=PlainReporter(io.StringIO())) as trainer, pytest.raises(RunError) as failed:
        trainer.train(ones)
    assert "the run has gone back 1 times already" in str(failed.value)
    assert [numbers(line) for line in open_run(copied).steps()] == [numbers(line) for line in before.steps()]
    assert open_run(copied).newest_checkpoint().step == before.newest_checkpoint().step


def numbers(line) -> dict[str, float]:
    """The step and what the learner did in it, without times."""
    return {"step": line.step} | {
        name: value for name, value in line.metrics.items() if name.startswith(("policy/", "reward/", "health/"))
    }


def test_a_run_that_went_back_and_stopped_goes_on_where_the_rule_is_off(collapsed, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(collapsed[0], copied)
    steps = open_run(copied).newest_checkpoint().step + 2
    changed = ("health.entropy_collapse=off", f"training.steps={steps}")
    with Trainer.resume(copied, *changed, reporter=PlainReporter(io.StringIO())) as trainer:
        summary = trainer.train(ones)
    assert (summary.outcome, summary.steps) == ("completed", steps)


def test_a_rule_that_stops_ends_the_run_with_everything_saved(tmp_path):
    told = train(tmp_path, "health.entropy_collapse={action: stop, threshold: 0.2}")
    summary = open_run(tmp_path / "run").summary
    assert summary.outcome.startswith("failed: health: entropy_collapse: policy/entropy is ")
    assert Path(summary.checkpoint).name == f"step-{summary.steps:06d}"
    assert "warning: health: entropy_collapse" not in told


def test_without_an_evaluated_checkpoint_the_run_stops_and_says_so(tmp_path):
    rule = "health.entropy_collapse={action: rollback, threshold: 0.2}"
    told = train(tmp_path, rule, "training.checkpoint_every=29", "evaluation.every=29")
    assert "no checkpoint has been evaluated to go back to" in told


@pytest.mark.parametrize(
    "setting", ["tasks.eval=null", "evaluation.every=0", "training.checkpoint_every=0", "training.steps=20"]
)
def test_a_config_without_checkpoints_to_go_back_to_is_refused(tmp_path, setting):
    config = load_config(None, f"run.dir={tmp_path}", "health.truncation=rollback", setting, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer, pytest.raises(ConfigError) as refused:
        trainer.train(ones)
    assert "health.truncation=rollback has no checkpoint to go back to: " in refused.value.message
    assert setting.partition("=")[0] in refused.value.message
