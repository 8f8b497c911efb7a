"""Where the values of a configuration come from."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from agentrl import load_config
from agentrl.config import Config, dump_yaml, resolve_config
from agentrl.errors import ConfigError

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a configuration file, in the current folder."""
    monkeypatch.chdir(tmp_path)

    def written(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return written


def load(path: Path | None, *overrides: str, **kwargs: Any) -> Config:
    return load_config(path, *overrides, **{"environ": {}, **kwargs})


def test_without_anything_the_defaults_are_the_quickstart() -> None:
    config = load(None)
    assert config == Config()
    assert (config.agent.name, config.model.name, config.algorithm.name) == ("math", "tiny", "grpo")


def test_the_command_line_wins_over_the_environment_that_over_the_file_that_over_the_defaults(write: Write) -> None:
    path = write("rollout: {group_size: 2, concurrency: 2, tasks_per_step: 2}\n")
    environ = {"AGENTRL_ROLLOUT__GROUP_SIZE": "3", "AGENTRL_ROLLOUT__CONCURRENCY": "3"}
    resolved = resolve_config(path, "rollout.group_size=4", environ=environ)
    rollout, provenance = resolved.config.rollout, resolved.provenance
    assert (rollout.group_size, rollout.concurrency, rollout.tasks_per_step, rollout.max_attempts) == (4, 3, 2, 3)
    assert provenance["rollout.group_size"] == "command line"
    assert provenance["rollout.concurrency"] == "environment AGENTRL_ROLLOUT__CONCURRENCY"
    assert provenance["rollout.tasks_per_step"] == f"file {path}:1"
    assert provenance["rollout.max_attempts"] == "default"


def test_every_value_has_its_provenance(write: Write) -> None:
    resolved = resolve_config(
        write(
            "agent: {name: math, kwargs: {max_turns: 4}}\nreward: numeric\ntasks:\n  train: {name: jsonl, path: x}\n"
        ),
        "reward.tolerance=0.1",
        "algorithm=dapo",
        environ={"AGENTRL_ROLLOUT__OVERRIDE__TOP_P": "null"},
    )
    assert {key: place.rsplit("/")[-1] for key, place in resolved.provenance.items() if place != "default"} == {
        "agent.name": "config.yaml:1",
        "agent.kwargs.max_turns": "config.yaml:1",
        "reward.name": "config.yaml:2",
        "reward.tolerance": "command line",
        "tasks.train.name": "config.yaml:4",
        "tasks.train.path": "config.yaml:4",
        "algorithm": "command line",
        "rollout.override.top_p": "environment AGENTRL_ROLLOUT__OVERRIDE__TOP_P",
    }
    assert {"seed", "tasks.eval", "training.device", "trackers"} < resolved.provenance.keys()


def test_a_key_that_holds_a_dot_stays_within_its_mapping(write: Write) -> None:
    resolved = resolve_config(write("agent: {name: math, kwargs: {a.b: 1}}\n"), environ={})
    assert resolved.config.agent.kwargs == {"a.b": 1}
    assert resolved.provenance["agent.kwargs"].endswith("config.yaml:1")


def test_the_process_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AGENTRL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AGENTRL_SEED", "5")
    assert load_config().seed == 5
    assert load(None).seed == 0


def test_variables_that_agentrl_reads_for_itself_are_no_keys() -> None:
    environ = {"AGENTRL_DISABLE_PLUGINS": "a,b", "AGENTRL_TEST_DATA": "x", "AGENTRL_DEBUG": "1", "HOME": "y"}
    assert load(None, environ=environ) == Config()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("3.0e-4", 3e-4),
        (".5", 0.5),
        ("3", 3),
        ("-3", -3),
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("no", "no"),
        ("007", 7),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+5", 5),
        ("1e-4", 1e-4),
        ("1.", 1.0),
        ("-.inf", float("-inf")),
        ("0b1", "0b1"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("=", "="),
        ("2026-11-24", "2026-11-24"),
        ("12:30:00", "12:30:00"),
        ("1_000", "1_000"),
        ("'3'", "3"),
        ("[1, a]", [1, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("Answer: {x}", "Answer: {x}"),
        ("a=b", "a=b"),
        ("@who #what !why *how", "@who #what !why *how"),
        ("file.py:Agent", "file.py:Agent"),
    ],
)
@pytest.mark.parametrize("source", ["command line", "environment"])
def test_values_are_yaml_scalars(text: str, value: object, source: str) -> None:
    if source == "command line":
        config = load(None, f"agent.kwargs.x={text}")
    else:
        config = load(None, environ={"AGENTRL_AGENT__KWARGS__X": text})
    assert config.agent.kwargs == {"x": value}
    assert type(config.agent.kwargs["x"]) is type(value)


@pytest.mark.parametrize(
    ("file", "overrides", "name", "options"),
    [
        ("algorithm: dapo", [], "dapo", {}),
        ("algorithm: {name: dapo, clip: 1}", [], "dapo", {"clip": 1}),
        ("algorithm: dapo", ["algorithm.clip=1"], "dapo", {"clip": 1}),
        ("algorithm: {clip: 1}", [], "grpo", {"clip": 1}),
        ("", ["algorithm.clip=1"], "grpo", {"clip": 1}),
        ("algorithm: {name: dapo, clip: 1}", ["algorithm.name=gspo"], "gspo", {"clip": 1}),
        ("algorithm: {name: dapo, clip: 1}", ["algorithm=gspo"], "gspo", {}),
        ("algorithm: dapo", ["algorithm=gspo", "algorithm.clip=1"], "gspo", {"clip": 1}),
        ("algorithm: dapo", ["algorithm={name: gspo, clip: 1}"], "gspo", {"clip": 1}),
        (
            "algorithm: {objective: clip}",
            ["algorithm.objective.low=1"],
            "grpo",
            {"objective": {"name": "clip", "low": 1}},
        ),
        ("algorithm: {a: {x: 1}}", ["algorithm.a.y=2"], "grpo", {"a": {"x": 1, "y": 2}}),
    ],
)
def test_a_part_is_a_name_or_a_mapping_in_every_source(
    write: Write, file: str, overrides: list[str], name: str, options: dict[str, Any]
) -> None:
    algorithm = load(write(file), *overrides).algorithm
    assert (algorithm.name, algorithm.options) == (name, options)


def test_the_agent_given_beside_the_overrides_keeps_the_keys_of_the_file(write: Write) -> None:
    path = write("agent: {name: math, kwargs: {max_turns: 4}}\n")
    resolved = resolve_config(path, environ={}, agent="mine.py:Agent")
    assert resolved.config.agent.name == "mine.py:Agent"
    assert resolved.config.agent.kwargs == {"max_turns": 4}
    assert resolved.provenance["agent.name"] == "command line"


def test_null_takes_a_part_away(write: Write) -> None:
    assert load(write("tasks: {eval: {name: jsonl, path: x}}\n"), "tasks.eval=null").tasks.eval is None


@pytest.mark.parametrize(
    ("overrides", "held_out"),
    [
        ((), "arithmetic-heldout"),
        (("tasks.train=arithmetic",), "arithmetic-heldout"),
        (("tasks.train.digits=3",), "arithmetic-heldout"),
        (("tasks.eval.digits=3",), {"name": "arithmetic-heldout", "digits": 3}),
        (("tasks.train=questions.jsonl",), None),
        (("tasks.train={name: gsm8k, path: x}",), None),
        (("tasks={train: questions.jsonl}",), None),
        (("tasks.train=questions.jsonl", "tasks.eval=arithmetic-heldout"), "arithmetic-heldout"),
        (("tasks.train=questions.jsonl", "tasks.eval=held-out.jsonl"), "held-out.jsonl"),
        (("tasks.train=arithmetic", "tasks.eval=null"), None),
    ],
)
@pytest.mark.parametrize("source", ["command line", "file", "environment"])
def test_no_tasks_are_evaluated_on_those_of_another_set(
    write: Write, overrides: tuple[str, ...], held_out: object, source: str
) -> None:
    if source == "command line":
        config = load(None, *overrides)
    elif source == "file":
        config = load(write(as_yaml(overrides)))
    else:
        pairs = (each.split("=", 1) for each in overrides)
        config = load(None, environ={f"AGENTRL_{key.upper().replace('.', '__')}": value for key, value in pairs})
    assert config.model_dump(mode="json")["tasks"]["eval"] == held_out
    assert load(write(dump_yaml(config))) == config


def as_yaml(overrides: tuple[str, ...]) -> str:
    """The overrides as a file."""
    values: dict[str, Any] = {}
    for override in overrides:
        key, value = override.split("=", 1)
        *parents, last = key.split(".")
        at = values
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = YAML(typ="safe").load(value)
    return json.dumps(values)


def test_an_empty_file_sets_nothing(write: Write) -> None:
    assert load(write("# nothing yet\n")) == Config()


def test_anchors_and_merge_keys_are_read(write: Write) -> None:
    path = write("tasks:\n  train: &set {name: jsonl, path: a}\n  eval: {<<: *set, path: b}\n")
    tasks = load(path).tasks
    assert tasks.train.options == {"path": "a"}
    assert tasks.eval is not None
    assert tasks.eval.options == {"path": "b"}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OPTIONS = st.dictionaries(TEXT.filter(lambda key: key not in ("name", "options")), PLAIN, max_size=3)
PARTS = st.builds(lambda name, options: {**options, "name": name}, TEXT, OPTIONS)


@settings(deadline=None)
@given(
    agent=st.fixed_dictionaries({"name": TEXT, "kwargs": st.dictionaries(TEXT, PLAIN, max_size=3)}),
    reward=st.none() | TEXT | PARTS,
    trackers=st.lists(TEXT | PARTS, max_size=2),
    rate=st.floats(0, 1e300),
    run=st.fixed_dictionaries({"name": st.none() | TEXT}),
)
def test_a_configuration_that_was_written_down_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, rate: float, **values: object
) -> None:
    config = Config.model_validate({**values, "training": {"learning_rate": rate}})
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    with contextlib.chdir(path.parent):
        path.write_text(dump_yaml(config), encoding="utf-8")
        assert load_config(path, environ={}) == config


def test_what_a_limit_is_worth_is_a_reward_or_a_rejection(write: Write) -> None:
    assert load(None).rollout.on_overflow.reward == 0.0
    assert load(None, "rollout.on_overflow.reward=-1").rollout.on_overflow.reward == -1.0
    rejecting = load(write("rollout: {on_overflow: {reward: 0.5}}\n"), "rollout.on_overflow=reject")
    assert rejecting.rollout.on_overflow.reward is None
    assert "  on_overflow: reject" in dump_yaml(rejecting)
    assert load(write(dump_yaml(rejecting))) == rejecting
    rewarding = load(write("rollout: {on_overflow: reject}\n"), "rollout.on_overflow={reward: 2}")
    assert rewarding.rollout.on_overflow.reward == 2.0
    assert load(write(dump_yaml(rewarding))) == rewarding
    with pytest.raises(ConfigError, match=r"should be reject, or \{reward: 0\} with any number, not 'ignore'"):
        load(None, "rollout.on_overflow=ignore")
