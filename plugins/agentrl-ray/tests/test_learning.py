"""Minutes of training: the quickstart on a cluster, and an agent of another environment on its second node."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from watching import Watching

from agentrl import ConfigError, Trainer, find_environment, load_config

pytestmark = pytest.mark.long


def trained(nodes: Any, tmp_path: Path, agent: str, *settings: str) -> tuple[Any, Watching]:
    watching = Watching()
    config = load_config(
        None,
        f"run.dir={tmp_path}",
        "run.name=run",
        "scheduler.type=ray",
        f"scheduler.address={nodes.address}",
        "scheduler.placement=spread",
        "training.processes=2",
        *settings,
    )
    with Trainer(config, reporter=watching) as trainer:
        return trainer.train(agent=agent), watching


def test_the_quickstart_learns(nodes: Any, cluster: Any, tmp_path: Path) -> None:
    summary, _ = trained(nodes, tmp_path, "math", "scheduler.workers={resources: {second: 0.1}}")
    assert summary.outcome == "completed"
    assert summary.reward_before < 0.5
    assert summary.reward_after > 0.9


def test_agents_of_the_camel_environment_learn_on_the_second_node(nodes: Any, cluster: Any, tmp_path: Path) -> None:
    try:
        find_environment("camel")
    except ConfigError as error:
        pytest.skip(f"{error}: agentrl env create camel")
    summary, _ = trained(
        nodes, tmp_path, "camel-math", "agent.python=camel", "scheduler.workers={resources: {second: 0.1}}"
    )
    assert summary.reward_after > summary.reward_before + 0.3
    [place] = {re.search(r"node (\w+)", path.read_text())[1] for path in (tmp_path / "run/logs/workers").glob("*.log")}
    [second] = [node.id for node in cluster.nodes() if "second" in node.total]
    assert second.startswith(place)
