"""One cluster of two nodes on this machine, which all tests share, and a third node for those that lose one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import ray
from ray.cluster_utils import Cluster as TestCluster

from agentrl_ray.cluster import Cluster, joined
from agentrl_ray.hosts import RayHosts, Shared
from agentrl_ray.settings import RaySettings

pytest_plugins = ["agentrl.testing"]

# A busy machine is no failure.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

# What hosts of tests hold is found on all nodes, whose processes inherit this.
os.environ["PYTHONPATH"] = str(Path(__file__).parent)

STORE = 80 * 2**20
"""Bytes of a node's object store: the least that Ray takes."""


@pytest.fixture(scope="session")
def nodes() -> Iterator[TestCluster]:
    """The head, with 3 processors, and a node with 2 that is called `second`."""
    cluster = TestCluster(initialize_head=True, head_node_args=node_arguments(3, "head"))
    try:
        cluster.add_node(**node_arguments(2, "second"))
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def node_arguments(cpus: int, name: str) -> dict[str, Any]:
    """Of a node with so many processors, and a resource of that name."""
    return {"num_cpus": cpus, "resources": {name: 1}, "object_store_memory": STORE, "include_dashboard": False}


@pytest.fixture
def third(nodes: TestCluster) -> Iterator[Callable[[], Any]]:
    """Adds a node with 2 processors that is called `third`; whatever is left of it goes at the end."""
    added: list[Any] = []

    def add() -> Any:
        added.append(nodes.add_node(**node_arguments(2, "third")))
        return added[-1]

    yield add
    for node in added:
        if node in nodes.worker_nodes:
            nodes.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="session")
def cluster(nodes: TestCluster) -> Iterator[Cluster]:
    """This process's connection to it."""
    with joined(RaySettings(address=nodes.address)) as cluster:
        yield cluster


@pytest.fixture
def told() -> list[str]:
    """What was told to the user."""
    return []


@pytest.fixture
def hosts_of(cluster: Cluster, told: list[str]) -> Iterator[Callable[..., RayHosts]]:
    """Makes hosts with settings of ``RaySettings``, and ``written`` and ``read`` paths."""
    made: list[RayHosts] = []

    def make(
        written: dict[str, Path] | None = None,
        read: dict[str, Path] | None = None,
        env: dict[str, str] | None = None,
        **settings: Any,
    ) -> RayHosts:
        made.append(
            RayHosts(
                cluster,
                settings=RaySettings.model_validate(settings),
                shared=Shared(written or {}, read or {}),
                env=env or {},
                note=told.append,
                warn=told.append,
            )
        )
        return made[-1]

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [hosts.close(2.0) for hosts in made])
        yield make
