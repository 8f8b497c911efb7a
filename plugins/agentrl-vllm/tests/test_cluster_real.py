"""Two servers and two learner ranks that Ray places: they train the same agent to the same held-out reward.

Run by ``make acceptance``, in an environment that has agentrl-ray as well.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from lending import lent_backend
from real import KEYS, START_S
from training_runs import VLLM, run

from agentrl import Plugins, load_config, open_run
from agentrl.inference.contract import Weights
from agentrl.reporting.plain import PlainReporter
from agentrl.testing.backends.bench import started_bench
from agentrl.testing.backends.reference import load_reference
from agentrl.testing.parts import model_folder
from agentrl.training.schedulers import build_scheduler

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
EXACT = 1e-4


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


def test_a_machine_that_dies_takes_its_server_along_and_another_gets_one(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        config = load_config(None, f"scheduler={{type: ray, address: '{cluster.address}'}}", environ={})
        folder = model_folder("tiny")
        reporter = PlainReporter(io.StringIO())
        scheduler = build_scheduler(Plugins(), config, reporter, folder)

        def loses_a_machine() -> None:
            owner = SimpleNamespace(reference=load_reference(folder))

            @contextlib.asynccontextmanager
            async def lend(borrower: str) -> AsyncIterator[Weights]:
                with owner.reference.weights as weights:
                    yield weights

            def build(folder: Path) -> object:
                return lent_backend(dict(KEYS), folder, lend, hosts=scheduler.hosts, logs=tmp_path)

            with started_bench(build, folder, timeout=2 * START_S, start_timeout=2 * START_S) as served:
                served.update()
                owner.reference = served.reference
                (replica,) = served.backend.replicas
                (at,) = [each for each in nodes if each.node_id[:8] in replica.server._host.node]
                cluster.remove_node(at, allow_graceful=False)
                until = time.monotonic() + START_S
                while replica.life < 2:  # What is asked before its processes have ended is answered.
                    assert time.monotonic() < until, "nobody notices that the machine is gone"
                    time.sleep(0.2)
                for compared in served.sample(max_tokens=8):
                    assert set(compared.chunk.versions) == {served.reference.version}
                    assert compared.off_by < EXACT
                (left,) = [each for each in nodes if each is not at]
                assert left.node_id[:8] in replica.server._host.node

        scheduler.run(loses_a_machine)
    finally:
        cluster.shutdown()
