"""What is wrong with a configuration: one line, with the key, the value, where it was written and the fix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentrl import Config, ConfigError, load_config
from agentrl.config import errors
from agentrl.config.keys import known_keys


def message(path: Path | None, *overrides: str, agent: str | None = None, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, *overrides, environ=environ, agent=agent)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rollout:\n  groop_size: 3\n", ":2: there is no key 'rollout.groop_size' (did you mean 'group_size'?)"),
        ("group_size: 3\n", ":1: there is no key 'group_size' (did you mean 'rollout.group_size'?)"),
        ("zzz: 3\n", ":1: there is no key 'zzz' (known: agent, algorithm, evaluation, "),
        ("\nseed: abc\n", ":2: seed should be a valid integer, not 'abc' (the default is 0)"),
        ("seed: 1.5\n", ":1: seed should be a valid integer, not 1.5 (the default is 0)"),
        ("seed: 1.0\n", ":1: seed should be a valid integer, not 1.0 (the default is 0)"),
        ("seed: true\n", ":1: seed should be a valid integer, not true (the default is 0)"),
        ("seed: -1\n", ":1: seed should be greater than or equal to 0, not -1 (the default is 0)"),
        ("seed: {a: 1}\n", ":1: seed should be a valid integer, not {'a': 1} (the default is 0)"),
        ("seed: x\nrollout: 3\n", ":1: seed should be a valid integer, not 'x' (and 1 more) (the default is 0)"),
        (
            "training: {learning_rate: '1'}",
            ":1: training.learning_rate: should be auto, or a number of at least 0, not '1' (the default",
        ),
        (
            "training: {tokens_per_batch: 0}",
            ":1: training.tokens_per_batch: should be auto, or a whole number of at least 1, not 0 (the default",
        ),
        (
            "training: {learning_rate: .inf}",
            ":1: training.learning_rate: should be auto, or a number of at least 0, not inf (the def",
        ),
        ("training: {schedule: step}", ":1: training.schedule should be 'constant', 'linear' or 'cosine', not 'step'"),
        ("run: {name: [1.5]}", ":1: run.name should be a valid string, not [1.5] (the default is null)"),
        ("rollout:\n", ":1: rollout should be keys with their values, not null"),
        ("reward: [3]\n", ":1: reward should be a name, or {name: …} with its keys, not [3]"),
        (
            "reward: {tolerance: 3}\n",
            ":1: reward.name is missing: a registered name, `dist/name`, `pkg.mod:Obj`, `pkg.mod.",
        ),
        ("trackers: tensorboard\n", ":1: trackers should be a valid list, not 'tensorboard' (write it as a list: [ten"),
        (
            "agent: {name: math, env: A=1}\n",
            ":1: agent.env should be a valid list, not 'A=1' (write it as a list: [A=1])",
        ),
        (
            "training: {lora: true}\n",
            ":1: training.lora: should be null, a rank such as 16, or {rank: 16, targets: auto}, not true (the default",
        ),
        ("rollout_group_size: 3\n", ":1: there is no key 'rollout_group_size' (did you mean 'rollout.group_size'?)"),
        (
            f"seed: {'many words ' * 20}\n",
            f":1: seed should be a valid integer, not '{'many words ' * 6}many words… (the",
        ),
        ("a: b: c\n", ":1: not YAML: mapping values are not allowed here"),
        ("seed: 1\nagent: [\n", ":3: not YAML: expected the node content, but found '<stream end>'"),
        ("seed: 1\nseed: 2\n", ":2: 'seed' is there twice, first in line 1"),
        ("1: 2\n", ":1: a key is not text: quote it"),
        ("seed: !!python/name:os.system x\n", ":1: not YAML: could not determine a constructor"),
        ("seed: \x00\n", ": not YAML: unacceptable character"),
        ("- seed\n", " holds no keys (write a mapping, such as `seed: 0`)"),
    ],
)
def test_a_file_is_refused_with_the_line_at_fault(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    found = message(path)
    assert "config.yaml" in found
    assert found.split("config.yaml", 1)[1].removeprefix("'").startswith(expected)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "'seed' sets nothing (write key.sub=value, as in training.steps=100)"),
        ("=3", "'=3' sets nothing"),
        ("training..steps=3", "'training..steps=3' sets nothing"),
        ("seed=abc", "command line: seed should be a valid integer, not 'abc' (the default is 0)"),
        ("seed.sub=3", "command line: seed should be a valid integer, not {'sub': 3}"),
        ("rollout.group_sise=3", "command line: there is no key 'rollout.group_sise' (did you mean 'group_size'?)"),
        ("agent.kwargs.x=[1", "command line: agent.kwargs.x: [1 is not YAML: expected ',' or ']'"),
        ("training.schedule=up", "command line: training.schedule should be 'constant', 'linear' or 'cosine', not"),
    ],
)
def test_an_override_is_refused_as_one(override: str, expected: str) -> None:
    assert message(None, override).startswith(expected)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("AGENTRL_GROUP_SIZE", "3", "there is no key 'group_size' (did you mean AGENTRL_ROLLOUT__GROUP_SIZE?)"),
        (
            "AGENTRL_ROLLOUT_GROUP_SIZE",
            "3",
            "there is no key 'rollout_group_size' (did you mean AGENTRL_ROLLOUT__GROUP_SIZE?)",
        ),
        (
            "AGENTRL_TRAINING_LEARNING_RAT",
            "3",
            "there is no key 'training_learning_rat' (did you mean AGENTRL_TRAINING__LEARNING_RATE?)",
        ),
        (
            "AGENTRL_ROLLOUT__GROUP_SIZE",
            "x",
            "rollout.group_size should be a valid integer, not 'x' (the default is 8)",
        ),
        ("AGENTRL_DISABLE_PLUGIN", "x", "there is no key 'disable_plugin'"),
        ("AGENTRL_TRACKERS", "[", "[ is not YAML"),
    ],
)
def test_a_variable_that_sets_nothing_or_the_wrong_type_is_named(variable: str, value: str, expected: str) -> None:
    assert message(None, **{variable: value}).startswith(f"environment {variable}: {expected}")


def test_a_file_that_is_not_there_or_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("")
    found = message(tmp_path / "quikstart.yaml")
    assert found.endswith(f"quikstart.yaml' does not exist (in {tmp_path}: did you mean 'quickstart.yaml'?)")


def test_a_file_that_is_not_there_where_there_is_none_at_all_is_named(tmp_path: Path) -> None:
    assert message(tmp_path / "mine.yaml").endswith(f"mine.yaml' does not exist (there is no YAML file in {tmp_path})")
    assert "cannot be read: " in message(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read: " in message(tmp_path / "binary.yaml")


@pytest.mark.parametrize("override", ["agent=calculator", "agent.name=calculator"])
def test_the_agent_cannot_be_named_twice(override: str) -> None:
    assert message(None, override, agent="math").startswith("the agent is named twice, as 'math' and by an override")


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("rollout.openai.mode=subproc", "here AReaL's rollout.openai.mode is rollout.mode=subproc"),
        ("actor.optimizer.lr=1e-5", "here AReaL's actor.optimizer.lr is training.learning_rate=1e-05"),
        ("gconfig={n_samples: 4}", "here AReaL's gconfig.n_samples is rollout.group_size=4"),
        ("train_dataset={path: x.jsonl, batch_size: 8}", "here AReaL's train_dataset.path is tasks.train=x.jsonl"),
        ("train_dataset=x.jsonl", "here TRL's train_dataset is tasks.train=x.jsonl"),
        ("num_generations=8", "here TRL's num_generations is rollout.group_size=8"),
        ("use_vllm=true", "here TRL's use_vllm is inference.backend=vllm"),
        ("per_device_train_batch_size=8", "is rollout.tasks_per_step, which counts tasks and not episodes"),
        ("workflow_kwargs={max_turns: 3}", "here AReaL's workflow_kwargs is agent.kwargs)"),
        ("actor_rollout_ref.rollout.n=5", "here verl's actor_rollout_ref.rollout.n is rollout.group_size=5"),
        ("learning_rate=1e-5", "did you mean 'training.learning_rate'?"),
        ("beta=0.04", "here TRL's beta is algorithm.penalties=[{name: kl, coefficient: …}]"),
        ("loss_type=dr_grpo", "here TRL's loss_type is algorithm, which is grpo, dapo, dr_grpo or cispo"),
        ("delta=3.0", "here TRL's delta is algorithm.objective.dual_clip=3.0"),
        ("actor.prox_logp_method=loglinear", "algorithm.correction.proximal, which is recomputed or interpolated"),
        ("rollout.max_head_offpolicyness=2", "here AReaL's rollout.max_head_offpolicyness is rollout.max_staleness=2"),
    ],
)
def test_a_key_of_another_trainer_is_answered_with_ours(override: str, fix: str) -> None:
    found = message(None, override)
    assert found.startswith(f"command line: there is no key '{override.partition('=')[0]}")
    assert fix in found


def test_a_key_of_another_trainer_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("actor:\n  path: tiny\n  optimizer:\n    lr: 1e-5\n")
    assert message(path).startswith(f"file {path}:2: there is no key 'actor.path' (here AReaL's actor.path is model=ti")


def test_the_answers_name_keys_that_there_are() -> None:
    keys = {*known_keys(Config)}
    slots = ("advantage", "correction", "filter", "normalisation", "objective", "penalties", "shaping")
    parts = tuple(f"algorithm.{slot}" for slot in slots)
    for answer in (answer for of_trainer in errors._FOREIGN.values() for answer in of_trainer.values()):
        key = re.split(r"[ =,:]", answer)[0]
        assert key in keys or key.startswith(parts), answer
    foreign = {key for of_trainer in errors._FOREIGN.values() for key in of_trainer}
    assert not foreign & keys
