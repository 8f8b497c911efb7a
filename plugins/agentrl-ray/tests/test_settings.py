"""What the keys take, and what a scheduler and an executor refuse before there is a cluster."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from watching import Watching

from agentrl import ConfigError, Plugins, Trainer, load_config
from agentrl.hosting.local import LocalHosts
from agentrl.rollout.contract import AgentSpec, ExecutorContext
from agentrl_ray import hosts
from agentrl_ray.cluster import Cluster, _check_connected
from agentrl_ray.executor import RayExecutor
from agentrl_ray.scheduler import RayScheduler
from agentrl_ray.settings import RaySettings
from agentrl_ray.sharing import Mark, content_of, faults, marking


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"address": "ray://head:10001"}, "address of Ray Client"),
        ({"address": "head"}, "no address of a cluster"),
        ({"address": "local"}, "a cluster is started here where address is null"),
        ({"address": "auto", "cpus": 2}, "leave one of them out"),
        ({"placement": "anywhere"}, "placement"),
        ({"patience": 0}, "patience"),
        ({"runtime_env": {"env_vars": {"A": "b"}}}, "scheduler.env"),
        ({"env": ["NOT_SET_ANYWHERE"]}, "'NOT_SET_ANYWHERE', which is not set here"),
        ({"env": ["=x"]}, "names no variable"),
        ({"workers": {"cpu": 1}}, "cpus"),
        ({"adress": "auto"}, "address"),
    ],
)
def test_a_wrong_key_is_named(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = load_config(None, f"run.dir={tmp_path}")
    config = config.setting("scheduler", type(config.scheduler).model_validate({"type": "ray", **keys}))
    with Trainer(config, reporter=Watching()) as trainer, pytest.raises(ConfigError, match=words):
        trainer.check("math")


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (("scheduler={type: ray}",), "InlineExecutor"),
        (("scheduler={type: ray, workers: {cpus: 2}}",), "RayExecutor"),
        (("scheduler={type: ray}", "agent={name: math, python: python}"), "RayExecutor"),
        (("scheduler={type: local}",), "InlineExecutor"),
        (("rollout.mode=ray",), "RayExecutor"),
        (("scheduler={type: ray, workers: {}}", "rollout.mode=subproc"), "SubprocExecutor"),
    ],
)
def test_what_auto_means(settings: tuple[str, ...], kind: str) -> None:
    from agentrl.rollout.executors import build_executor

    assert type(build_executor(load_config(None, *settings), Plugins())).__name__ == kind


def test_keys_of_agents_in_workers_are_not_said_to_be_without_effect() -> None:
    from agentrl.config.ineffective import ineffective_keys

    said = {"rollout.max_workers": "command line"}
    for settings, dead in (((), True), (("scheduler={type: ray, workers: {cpus: 2}}",), False)):
        config = load_config(None, "rollout.max_workers=2", *settings)
        assert bool(ineffective_keys(config, said)) is dead


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"cpus": 2}, "scheduler.cpus would have no effect: this process is connected"),
        ({"runtime_env": {"pip": ["x"]}}, "scheduler.runtime_env would have no effect"),
        ({"address": "10.0.0.1:6379"}, "scheduler.address would have no effect"),
        ({"address": "10.0.0.2:6380"}, "scheduler.address would have no effect"),
        ({"address": "10.0.0.2:6379"}, None),
        ({"address": "127.0.0.1:6379"}, None),
        ({"address": "auto"}, None),
    ],
)
def test_a_process_that_is_connected_cannot_have_other_settings(keys: dict[str, Any], words: str | None) -> None:
    refused = pytest.raises(ConfigError, match=words) if words else contextlib.nullcontext()
    with refused:
        _check_connected(RaySettings.model_validate(keys), "10.0.0.2:6379")


def test_a_scheduler_without_a_cluster_is_refused() -> None:
    """One that starts hosts: without any, agents run here, and that is said."""
    config = load_config(None, "rollout.mode=ray", "training.processes=2", "scheduler.type=local")
    agent = AgentSpec("math", "agentrl_agents.math:MathAgent", lambda: pytest.fail("loaded here"))
    context = ExecutorContext(
        concurrency=1,
        max_workers=None,
        episodes_per_worker=None,
        logs=None,
        open_worker_endpoint=lambda: pytest.fail("an endpoint was opened"),
        warn=pytest.fail,
        hosts=LocalHosts(),
    )
    with pytest.raises(ConfigError, match=r"rollout\.mode=ray runs agents .*, and scheduler\.type=local has none"):
        RayExecutor(agent, config).running(context)


def test_variables_are_those_that_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "kept")
    monkeypatch.setenv("LISTED", "passed")
    scheduler = RayScheduler(RaySettings(env=["LISTED", "GIVEN=too"]), Watching(), {})
    assert scheduler._env == {"LISTED": "passed", "GIVEN": "too"} | (
        {"AGENTRL_DISABLE_PLUGINS": os.environ["AGENTRL_DISABLE_PLUGINS"]}
        if "AGENTRL_DISABLE_PLUGINS" in os.environ
        else {}
    )


def test_marks_tell_the_same_folder_from_another(tmp_path: Path) -> None:
    for name in ("runs", "others", "model", "copy"):
        (tmp_path / name).mkdir()
    for name in ("model", "copy"):
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "agent.py").write_text("agent = 1")
    read = {"model.name": tmp_path / "model", "agent.name": tmp_path / "agent.py"}
    with marking({"run.dir": tmp_path / "runs"}, read) as marks:
        assert faults(marks) == []
        of_runs, of_model, of_agent = marks
        elsewhere = [
            Mark("run.dir", str(tmp_path / "others"), of_runs.file, of_runs.digest),
            Mark("model.name", str(tmp_path / "copy"), None, of_model.digest),
            Mark("agent.name", str(tmp_path / "missing.py"), None, of_agent.digest),
        ]
        assert [(key, wrong) for key, _, wrong in faults(elsewhere)] == [
            ("run.dir", "is there, and is another folder"),
            ("agent.name", "is not there"),
        ]
        (tmp_path / "copy" / "config.json").write_text("{ }")
        assert faults([elsewhere[1]]) == [("model.name", str(tmp_path / "copy"), "is there, with other content")]
    assert list((tmp_path / "runs").iterdir()) == []
    assert content_of(tmp_path / "agent.py") != content_of(tmp_path / "copy")


def test_an_agent_that_only_nodes_have_is_looked_for_there() -> None:
    spec = AgentSpec("far", "far.module:Agent", lambda: pytest.fail("loaded here"), python=Path("/far/bin/python"))
    import asyncio

    facts = asyncio.run(RayExecutor(spec, load_config(None, "scheduler.type=ray")).inspect())
    assert facts.is_async


def test_a_head_that_is_gone_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would end this process a minute later."""
    monkeypatch.setattr(hosts, "_HEAD_S", 0.01)
    told: list[str] = []
    looks: list[bool] = []
    with socket.create_server(("127.0.0.1", 0)) as head:
        cluster = Cluster(f"127.0.0.1:{head.getsockname()[1]}", own=True)
        monkeypatch.setattr(Cluster, "is_listening", looking(Cluster.is_listening, looks))
        own = hosts.RayHosts(
            cluster, settings=RaySettings(), shared=hosts.Shared({}, {}), env={}, note=told.append, warn=told.append
        )
        wait_for(lambda: len(looks) >= 3)
        assert all(looks)
        assert told == []
    wait_for(lambda: looks.count(False) >= 5)
    own.close(0.0)
    [line] = told
    assert line.startswith(f"the head of the Ray cluster at {cluster.address} does not answer")


def looking(looks: Callable[[Cluster], bool], kept: list[bool]) -> Callable[[Cluster], bool]:
    """``looks``, whose results are kept."""

    def look(cluster: Cluster) -> bool:
        kept.append(looks(cluster))
        return kept[-1]

    return look


def wait_for(happens: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.01)
