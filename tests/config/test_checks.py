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
        ("health.reward_gap=stop", "tasks.eval=null", "tasks.eval is null"),
        ("rollout.max_tokens=9", "rollout.override={max_tokens: 8}", "rollout.override.max_tokens replaces it"),
    ],
)
def test_a_key_without_effect_is_reported_with_what_makes_it_so(override: str, setting: str, reason: str) -> None:
    key = override.partition("=")[0]
    assert key not in dead(override)
    assert dead(override, setting)[key] == reason


@pytest.mark.parametrize("rule", ["staleness", "stale_share", "stage_wait"])
def test_rules_of_stages_that_take_turns_are_reported(rule: str) -> None:
    assert list(dead(f"health.{rule}=stop")) == [f"health.{rule}"]
    assert dead(f"health.{rule}=stop", "rollout.max_staleness=1") == {}


def test_a_number_of_rollbacks_is_reported_where_nothing_rolls_back() -> None:
    assert dead("health.most_rollbacks=3") == {"health.most_rollbacks": "no rule of health is set to rollback"}
    assert dead("health.most_rollbacks=3", "health.truncation=rollback") == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("checkpoint_every=7 every=5 steps=20", "is that of step 35, and training.steps is 20"),
        ("checkpoint_every=5 every=10 steps=10", "is that of step 10, and training.steps is 10"),
        ("checkpoint_every=5 every=10 steps=11", None),
    ],
)
def test_a_rollback_needs_an_evaluated_checkpoint_before_the_last_step(settings: str, message: str | None) -> None:
    written = (f"{'evaluation' if each.startswith('every') else 'training'}.{each}" for each in settings.split())
    config = resolve_config(None, "health.truncation=rollback", *written, environ={}).config
    if message is None:
        check_trainable(config)
        return
    with pytest.raises(ConfigError, match=message):
        check_trainable(config)


def test_people_are_offered_to_stop_instead_of_a_rollback() -> None:
    config = resolve_config(None, "agent=online", "health.truncation=rollback", environ={}).config
    with pytest.raises(ConfigError, match=r"^health.truncation=rollback .*agent=online.*\(set it to stop\)$"):
        check_trainable(config)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rollout.on_overflow=null", "rollout.on_overflow: should be reject, or {reward: 0} with any number, not null"),
        ("health=off", "health: should be rules with off, warn, stop or rollback for each"),
        ("health.mismatch_kl=false", "health.mismatch_kl"),
        ("health.mismatch_kl=0.3", "health.mismatch_kl"),
        ("health.truncation={threshold: 1.5}", "health.truncation: threshold should be below 1, not 1.5"),
        ("training.keep_checkpoints=2", "'training.keep_checkpoints' (did you mean "),
    ],
)
def test_a_wrong_value_is_refused_with_what_can_be_written(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve_config(None, override, environ={})
    assert said in str(refused.value)
    if override.startswith("health.mismatch_kl"):
        assert "off" in str(refused.value)
        assert "rollback" in str(refused.value)


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
    given = ("seed=3", "tasks.train=arithmetic", "inference.backend={name: torch, share_weights: true}")
    resolved = resolve_config(tmp_path / "run.yaml", *given, environ=environ)
    told = [str(key) for key in unused_by_evaluation(resolved.provenance)]
    assert told == [
        "inference.backend.share_weights (command line) has no effect: evaluation does not train",
        "tasks.train (command line) has no effect: evaluation does not train",
        "training.steps (environment AGENTRL_TRAINING__STEPS) has no effect: evaluation does not train",
    ]
    assert "seed" in {key.key for key in unused_by_evaluation(resolved.provenance, endpoint=True)}
