"""The configuration of a run without an agent: its defaults, and the keys that mean nothing in it."""

from __future__ import annotations

import pytest

from agentrl.cli.serve import _DEFAULTS
from agentrl.config import ineffective_keys, load_config, resolve_config
from agentrl.config.loader import dump_yaml
from agentrl.config.models import Config, ServeSection


def online(*overrides: str) -> Config:
    return load_config(None, "agent=online", *overrides, environ={})


def staleness(config: Config) -> tuple[str, int, object]:
    return config.rollout.on_stale, config.rollout.max_staleness, config.tasks.eval


def test_people_are_not_waited_for_by_default():
    assert staleness(online()) == ("mask", 4, None)
    assert staleness(online("rollout.on_stale=drop", "rollout.max_staleness=1")) == ("drop", 1, None)
    assert staleness(load_config(None, environ={}))[:2] == ("wait", 0)


def test_a_file_may_ask_for_no_staleness_at_all(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("agent: online\nrollout: {max_staleness: 0}\n")
    assert staleness(load_config(path, environ={})) == ("mask", 0, None)


def test_the_defaults_hold_wherever_the_agent_is_named():
    assert staleness(Config(agent="online")) == ("mask", 4, None)
    assert staleness(load_config(None, environ={}).naming("agent", "online")) == ("mask", 4, None)
    chosen = load_config(None, "rollout.max_staleness=2", environ={}).naming("agent", "online")
    assert staleness(chosen) == ("mask", 2, None)


def test_a_file_of_such_a_run_reads_back_equal(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(online("serve.port=0"), tmp_path))
    read, written = load_config(path, environ={}), online("serve.port=0")
    assert (read.serve, read.rollout, read.tasks) == (written.serve, written.rollout, written.tasks)


@pytest.mark.parametrize(
    "setting",
    [
        "agent.python=python3",
        "agent.kwargs={a: 1}",
        "tasks.train=arithmetic",
        "tasks.eval=arithmetic-heldout",
        "reward=exact",
        "evaluation.every=5",
        "rollout.mode=subproc",
        "rollout.episode_timeout=5",
        "rollout.max_attempts=2",
        "rollout.failure_budget=0.1",
        "rollout.dynamic_sampling=1",
        "rollout.on_overflow=reject",
    ],
)
def test_keys_of_agents_and_tasks_are_said_to_have_no_effect(setting):
    resolved = resolve_config(None, setting, environ={}, agent="online")
    (dead,) = ineffective_keys(resolved.config, resolved.provenance)
    assert dead.key.startswith(setting.partition("=")[0])


def test_keys_of_the_service_have_no_effect_beside_an_agent():
    resolved = resolve_config(None, "serve.port=0", environ={}, agent="math")
    assert [dead.key for dead in ineffective_keys(resolved.config, resolved.provenance)] == ["serve.port"]


def test_the_options_of_serve_have_the_defaults_of_the_section():
    assert {name: value for name, value in ServeSection().model_dump().items() if name != "url"} == _DEFAULTS
