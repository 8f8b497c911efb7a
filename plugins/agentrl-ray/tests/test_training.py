"""Whole runs on a cluster: the learner in its ranks, agents on a node, and what becomes of nodes that die."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from watching import Watching

from agentrl import ConfigError, RunError, Trainer, load_config, open_run

AGENT = """
import asyncio
from agentrl_agents.math import MathAgent

class Slow(MathAgent):
    async def run(self, data, *, base_url, api_key, http_client=None):
        await asyncio.sleep(0.5)
        return await super().run(data, base_url=base_url, api_key=api_key, http_client=http_client)
"""


@pytest.fixture
def train(nodes: Any, cluster: Any, tmp_path: Path) -> Callable[..., Any]:
    """Trains two steps on the cluster of the tests."""

    def train(reporter: Watching, *settings: str, agent: str = "math", scheduler: str = "ray") -> Any:
        where = [] if scheduler == "local" else [f"scheduler.address={nodes.address}"]
        config = load_config(
            None,
            f"run.dir={tmp_path}",
            f"run.name={scheduler}",
            f"scheduler.type={scheduler}",
            "training.steps=2",
            "training.checkpoint_every=1",
            "training.timeout=120",
            "evaluation.tasks=4",
            "rollout.group_size=4",
            "rollout.tasks_per_step=2",
            *where,
            *settings,
        )
        with Trainer(config, reporter=reporter) as trainer:
            return trainer.train(agent=agent)

    return train


def test_the_quickstart_learns_as_locally(train: Any, tmp_path: Path) -> None:
    """Two ranks on two nodes, agents in processes on the second one; and the same without Ray, in this process."""
    there, here = Watching(), Watching()
    summary = train(
        there,
        "training.processes=2",
        "scheduler.placement=strict_spread",
        "scheduler.workers={resources: {second: 0.1}}",
    )
    assert (summary.outcome, summary.steps, summary.failed) == ("completed", 2, 0)
    assert train(here, scheduler="local").episodes == summary.episodes
    for ours, theirs in zip(there.metrics, here.metrics, strict=True):
        assert ours["reward/mean"] == theirs["reward/mean"]
        assert ours["policy/grad_norm"] == pytest.approx(theirs["policy/grad_norm"], rel=1e-4)
    logs = tmp_path / "ray" / "logs"
    ranks = [(logs / "hosts" / f"learner-rank-{rank}.log").read_text() for rank in (0, 1)]
    assert len({node_of(text) for text in ranks}) == 2
    [second] = {node_of(path.read_text()) for path in (logs / "workers").glob("*.log")}
    assert there.told("agents 1", second)
    assert there.told("learner rank 0", "learner rank 1")
    assert not list(tmp_path.glob(".agentrl-*"))


def node_of(text: str) -> str:
    """The beginning of the id of the node that a log is from."""
    found = re.search(r"node ([0-9a-f]{8})", text)
    assert found is not None, text
    return found[1]


def test_a_node_that_dies_in_mid_rollout_costs_its_episodes(train: Any, third: Any, nodes: Any, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(AGENT)
    node, done = third(), threading.Event()

    def kill(name: str, held: Any) -> None:
        # The first episodes of the second step have ended, others are running.
        if name == "episode" and held.key.phase == "train" and held.key.group >= 2 and not done.is_set():
            done.set()
            nodes.remove_node(node, allow_graceful=False)

    watching = Watching(kill)
    summary = train(
        watching,
        "evaluation.every=0",
        "rollout.concurrency=4",
        "rollout.episodes_per_worker=2",
        "scheduler.workers={nodes: 3}",
        agent=f"{tmp_path}/slow.py:Slow",
    )
    assert done.is_set()
    assert (summary.outcome, summary.steps, summary.failed) == ("completed", 2, 0)
    [line] = watching.told("agents ", "was lost", "its episodes are run again")
    assert "agents go on on 2 nodes" in line
    retried = [each for each in open_run(tmp_path / "ray").episodes() if each.attempts > 1]
    assert len(retried) == summary.retried > 0


def lose(nodes: Any, node: Any, stopped: int) -> None:
    """End all of a node at once, as a machine does, and with it the process ``stopped``.

    That would go on for a moment where the node's own process ended first: the kernel has those continue that stand
    still in a group that is nobody's any more. The node's own process, standing still, tells nobody of that end.
    """
    for each in node.all_processes["raylet"]:
        each.process.send_signal(signal.SIGSTOP)
    os.kill(stopped, signal.SIGKILL)
    nodes.remove_node(node, allow_graceful=False)


def test_a_node_that_dies_in_mid_step_costs_a_restart(train: Any, third: Any, nodes: Any, tmp_path: Path) -> None:
    third()
    logs = tmp_path / "ray" / "logs" / "hosts"
    killed: list[str] = []

    def kill(name: str, held: Any) -> None:
        if (
            (name, held) != ("activity", "learning")
            or not (tmp_path / "ray/checkpoints/step-000001").exists()
            or killed
        ):
            return
        # A rank stops in mid-step, and its node is lost while the other one waits for it.
        for rank in (0, 1):
            text = (logs / f"learner-rank-{rank}.log").read_text()
            lost = [each for each in nodes.worker_nodes if each.node_id.startswith(node_of(text))]
            if lost:
                killed.append(lost[0].node_id)
                found = re.search(r"process (\d+)", text)
                assert found is not None
                os.kill(int(found[1]), signal.SIGSTOP)
                threading.Timer(2, lose, (nodes, lost[0], int(found[1]))).start()
                return

    watching = Watching(kill)
    try:
        summary = train(watching, "training.processes=2", "scheduler.placement=strict_spread", "evaluation.every=0")
    finally:
        if not any("second" in str(each.get_resource_and_label_spec()) for each in nodes.worker_nodes):
            from conftest import node_arguments

            nodes.add_node(**node_arguments(2, "second"))
    assert killed
    assert (summary.outcome, summary.steps, summary.restarts) == ("completed", 2, 1)
    assert watching.told("warning: ", "learner rank", killed[0][:8])


def test_what_has_no_room_is_said_before_anything_is_trained(train: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"30 hosts .* do not fit the Ray cluster"):
        train(Watching(), "training.processes=30")
    watching = Watching()
    with pytest.raises(RunError, match=r"waited 2 s for room for .*far"):
        train(
            watching,
            "scheduler.autoscaling=true",
            "scheduler.patience=2",
            "scheduler.workers={resources: {far: 1}}",
            "run.name=far",
        )
    assert watching.told("waiting for room for")


@pytest.mark.long
def test_a_node_that_joins_runs_agents_too(train: Any, third: Any, tmp_path: Path) -> None:
    """Until then agents have one node; the steps are long enough for another one to come in."""
    (tmp_path / "slow.py").write_text(AGENT)
    joined: list[Any] = []

    def join(name: str, held: Any) -> None:
        if (name, held) == ("step", 1) and not joined:
            joined.append(third())

    watching = Watching(join)
    summary = train(
        watching,
        "evaluation.every=0",
        "training.steps=12",
        "training.checkpoint_every=0",
        "rollout.concurrency=2",
        "rollout.episodes_per_worker=1",
        "scheduler.workers={cpus: 2}",
        agent=f"{tmp_path}/slow.py:Slow",
    )
    assert summary.failed == 0
    assert watching.told("agents run on", "too")
