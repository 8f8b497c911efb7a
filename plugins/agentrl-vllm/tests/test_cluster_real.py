"""Two servers and two learner ranks that Ray places: they train the same agent to the same held-out reward.

Run by ``make acceptance``, in an environment that has agentrl-ray as well.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from real import KEYS
from training_runs import VLLM, run

from agentrl import open_run

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (importlib.util.find_spec("ray") and importlib.util.find_spec("agentrl_ray")),
        reason="agentrl-ray is not installed beside this plugin: tox -e vllm-servers has it",
    ),
    # Of Ray, at the end of a cluster that it has started.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

STEPS = 30
LEARNED = 0.9
APART = 0.08
"""The sampled rewards of two engines on 128 tasks differ by chance: each has its own random numbers."""
RATIO_WITHIN = 1e-3


@pytest.fixture
def address() -> Iterator[str]:
    """A cluster of two nodes on this machine, neither of which is taken to be the one of the run."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def test_two_servers_and_two_ranks_under_ray_learn_what_one_process_does(address: str, tmp_path: Path) -> None:
    settings = [f"training.steps={STEPS}", "evaluation.every=0", "training.checkpoint_every=0"]
    spread = run(
        tmp_path / "spread",
        "math",
        {"name": VLLM, "replicas": 2, **KEYS},
        *settings,
        "training.processes=2",
        "training.device=cpu",
        f"scheduler={{type: ray, address: '{address}', env: [OMP_NUM_THREADS=1]}}",
        "inference.timeout=900",
    )
    alone = run(tmp_path / "alone", "math", {"name": "torch"}, *settings)
    assert spread.error is alone.error is None, (spread.said, alone.said)
    assert spread.once_each
    assert spread.exact
    ours, theirs = spread.summary, alone.summary
    assert ours.reward_before_greedy == theirs.reward_before_greedy
    assert min(ours.reward_after, ours.reward_after_greedy, theirs.reward_after) >= LEARNED
    assert abs(ours.reward_after - theirs.reward_after) <= APART
    rows = [line.metrics for line in open_run(spread.folder.path).metrics() if "proof/tensors" in line.metrics]
    assert len(rows) == STEPS
    assert all(row["proof/tensors"] > 0 for row in rows)
    logs = {each.name for each in spread.folder.logs.iterdir()}
    assert {"vllm-0.log", "vllm-1.log"} <= logs
    assert "new weights go to the servers by stream" in spread.said
