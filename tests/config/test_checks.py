"""Settings that prevent learning, and settings that would change nothing."""

from __future__ import annotations

import pytest

from agentrl import ConfigError
from agentrl.config import check_trainable, ineffective_keys, resolve_config, unused_by_evaluation


def dead(*overrides: str) -> dict[str, str]:
    resolved = resolve_config(None, *overrides, environ={})
    found = ineffective_keys(resolved.config, resolved.provenance)
    assert len({one.key for one in found}) == len(found)
    return {one.key: one.reason for one in found}


def test_what_nobody_set_is_not_reported_and_neither_is_what_works() -> None:
    assert dead() == {}
    assert dead("tasks.eval=null", "training.steps=0", "training.learning_rate=0") == {
        "training.learning_rate": "training.steps is 0"
    }
    assert dead("evaluation.every=5", "training.schedule=cosine", "rollout.temperature=0.7") == {}


@pytest.mark.parametrize(
    ("override", "setting", "reason"),
    [
        ("evaluation.every=5", "tasks.eval=null", "tasks.eval is null"),
        ("evaluation.temperature=0.5", "tasks.eval=null", "tasks.eval is null"),
        ("evaluation.every=5", "training.steps=0", "training.steps is 0"),
        ("training.schedule=cosine", "training.steps=0", "training.steps is 0"),
        ("rollout.group_size=4", "training.steps=0", "training.steps is 0"),
        ("tasks.train.size=9", "training.steps=0", "training.steps is 0"),
        ("training.warmup_steps=5", "training.learning_rate=0", "training.learning_rate is 0"),
        ("training.weight_decay=0.1", "training.learning_rate=0", "training.learning_rate is 0"),
        ("rollout.temperature=0.7", "rollout.override={temperature: 1}", "rollout.override.temperature replaces it"),
        ("evaluation.temperature=0.7", "rollout.override={temperature: 1}", "rollout.override.temperature replaces it"),
        ("rollout.max_tokens=9", "rollout.override={max_tokens: 8}", "rollout.override.max_tokens replaces it"),
    ],
)
def test_a_key_without_effect_is_reported_with_what_makes_it_so(override: str, setting: str, reason: str) -> None:
    key = override.partition("=")[0]
    assert key not in dead(override)
    assert dead(override, setting)[key] == reason


def test_a_field_that_is_only_dropped_from_requests_leaves_the_default_in_effect() -> None:
    assert dead("rollout.temperature=0.7", "rollout.override={temperature: null}") == {}


def test_the_report_says_where_the_key_was_set() -> None:
    resolved = resolve_config(None, "tasks.eval=null", environ={"AGENTRL_EVALUATION__EVERY": "5"})
    (found,) = ineffective_keys(resolved.config, resolved.provenance)
    assert str(found) == ("evaluation.every (environment AGENTRL_EVALUATION__EVERY) has no effect: tasks.eval is null")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["rollout.temperature=0"], "rollout.temperature"),
        (["rollout.temperature=0", "rollout.override={temperature: null}"], "rollout.temperature"),
        (["rollout.override={temperature: 0}"], "rollout.override.temperature"),
    ],
)
def test_greedy_training_is_refused_and_greedy_configurations_still_load(overrides: list[str], key: str) -> None:
    config = resolve_config(None, *overrides, environ={}).config
    with pytest.raises(ConfigError, match=rf"^{key}=0 .*\(set {key} above 0\)$"):
        check_trainable(config)


@pytest.mark.parametrize("overrides", [[], ["rollout.temperature=0", "rollout.override={temperature: 1}"]])
def test_training_that_samples_is_fine(overrides: list[str]) -> None:
    check_trainable(resolve_config(None, *overrides, environ={}).config)


def test_what_an_evaluation_does_not_read_is_told_of_the_command_line_and_of_variables_alone(tmp_path) -> None:
    (tmp_path / "run.yaml").write_text("algorithm: grpo\nrollout: {group_size: 4}\n")
    environ = {"AGENTRL_TRAINING__STEPS": "5"}
    resolved = resolve_config(tmp_path / "run.yaml", "seed=3", "tasks.train=arithmetic", environ=environ)
    told = [str(key) for key in unused_by_evaluation(resolved.provenance)]
    assert told == [
        "tasks.train (command line) has no effect: evaluation does not train",
        "training.steps (environment AGENTRL_TRAINING__STEPS) has no effect: evaluation does not train",
    ]
    assert "seed" in {key.key for key in unused_by_evaluation(resolved.provenance, endpoint=True)}
