"""New weights reach every server whole, or it is taken out; whatever goes wrong, nothing samples from a mixture."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_of_fakes import FakeClient, FakeReplica, FakeServer, FakeWeights, Unwritable, fails, finds

from agentrl.errors import BackendError, PluginError
from agentrl_vllm.settings import VllmSettings
from agentrl_vllm.weights import WeightSync


class Table:
    """Servers, their replicas, and what puts weights into them."""

    def __init__(self, tmp_path: Path, count: int = 2, **settings: Any) -> None:
        self.start = tmp_path / "v0"
        self.start.mkdir()
        self.root = tmp_path / "shared"
        self.servers = [FakeServer(str(self.start)) for _ in range(count)]
        self.replicas = [FakeReplica(f"http://{number}", f"vLLM server {number}") for number in range(count)]
        client = FakeClient({replica.url: server for replica, server in zip(self.replicas, self.servers, strict=True)})
        keys = VllmSettings.model_validate({"weights_dir": str(self.root), **settings})
        self.sync = WeightSync(keys, client, self.start, 0)
        self.run(self.admit())

    async def admit(self) -> None:
        for replica in self.replicas:
            replica.version = None
            await self.sync.admit(replica)

    def put(self, weights: FakeWeights) -> None:
        self.run(self.sync.put(weights, self.replicas))

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run(coroutine)

    @property
    def folders(self) -> list[str]:
        """What is in shared memory."""
        return sorted(path.name for path in self.root.glob("*/*") if path.name != "lock")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Table]]:
    made: list[Table] = []

    def build(**settings: Any) -> Table:
        made.append(Table(tmp_path, **settings))
        return made[-1]

    yield build
    for table in made:
        table.sync.close()
    assert not list(tmp_path.glob("shared/*")), "something is left in shared memory"


def test_every_replica_takes_and_confirms_the_version(make):
    table = make()
    for version in (1, 2, 3):
        table.put(FakeWeights(version))
        assert [replica.version for replica in table.replicas] == [version] * 2
        assert [server.weights for server in table.servers] == [version] * 2
        assert table.folders == [f"v{version}"], "older weights are not removed"
    assert not any(server.paused for server in table.servers)


def test_a_server_is_paused_from_before_the_first_tensor_to_after_its_version_is_confirmed(make):
    table = make(count=1, probe_updates=0)
    table.servers[0].calls.clear()
    table.put(FakeWeights(1))
    assert table.servers[0].calls == [
        *("agentrl_check", "pause", "agentrl_load", "reset_prefix_cache"),
        *("update_weight_version", "weight_info", "resume"),
    ]


@pytest.mark.parametrize("fault", ["pause", "agentrl_load", "reset_prefix_cache", "update_weight_version"])
def test_a_server_that_fails_in_the_middle_is_taken_out_and_not_resumed(fault, make):
    table = make()
    table.servers[0].faults[fault] = fails("it is gone")
    table.servers[0].calls.clear()
    table.put(FakeWeights(1))
    lost, sound = table.replicas
    assert lost.state == "starting"
    assert lost.reason == "it did not take new weights: it is gone"
    assert "resume" not in table.servers[0].calls
    assert (sound.state, sound.version) == ("ready", 1)
    assert table.sync.newest()[1] == 1, "it has to come back with the new weights"


def test_a_load_that_a_worker_reports_as_failed_is_not_resumed(make):
    table = make()
    table.servers[1].faults["agentrl_load"] = finds("RuntimeError: out of memory")
    table.put(FakeWeights(1))
    assert "out of memory" in str(table.replicas[1].reason)
    assert table.servers[1].paused


def test_a_server_that_does_not_confirm_the_version_is_taken_out(make):
    table = make()
    table.servers[0].faults["update_weight_version"] = lambda: None
    table.put(FakeWeights(1))
    assert "says that it has weights 0, and should have 1" in str(table.replicas[0].reason)


def test_a_server_that_cannot_drop_its_prefix_cache_is_taken_out(make):
    table = make()
    table.servers[0].faults["reset_prefix_cache"] = lambda: {"success": False}
    table.put(FakeWeights(1))
    assert "still holds what older weights computed" in str(table.replicas[0].reason)


def test_weights_that_fit_no_server_are_refused_and_the_old_ones_stay(make):
    table = make()
    table.put(FakeWeights(1))
    for server in table.servers:
        server.faults["agentrl_check"] = finds("lm_head.weight is [4, 2] and should be [4, 8]")
    with pytest.raises(BackendError, match=r"do not fit the model .*lm_head.weight is \[4, 2\]"):
        table.put(FakeWeights(2))
    assert [(replica.state, replica.version) for replica in table.replicas] == [("ready", 1)] * 2
    assert [server.weights for server in table.servers] == [1, 1]
    assert not any(server.paused for server in table.servers)
    assert table.sync.newest() == (Path(table.servers[0].folder), 1)
    assert table.folders == ["v1"]


def test_where_one_server_alone_refuses_it_is_taken_out(make):
    table = make()
    table.servers[0].faults["agentrl_check"] = finds("/dev/shm/x is no folder that this server can see")
    table.put(FakeWeights(1))
    assert [replica.state for replica in table.replicas] == ["starting", "ready"]


def test_a_server_that_dies_before_it_is_asked_is_no_refusal(make):
    table = make(count=1)
    table.servers[0].faults["agentrl_check"] = fails("connection refused")
    table.put(FakeWeights(1))
    assert table.replicas[0].state == "starting"
    assert table.sync.newest()[1] == 1


def test_an_update_that_is_cancelled_leaves_no_server_between_two_versions(make):
    table = make()

    async def scenario() -> None:
        updating = asyncio.ensure_future(table.sync.put(FakeWeights(1), table.replicas))
        while not any(server.paused for server in table.servers):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        updating.cancel()
        await asyncio.wait([updating])

    table.run(scenario())
    for replica, server in zip(table.replicas, table.servers, strict=True):
        assert replica.state == "starting" or not server.paused


def test_a_server_that_started_on_older_weights_is_brought_to_the_newest(make):
    table = make()
    late, server = table.replicas[0], table.servers[0]
    late.state, late.version = "starting", None
    table.put(FakeWeights(1))
    assert server.weights == 0
    table.run(table.sync.admit(late))
    assert (late.version, server.weights, server.label, server.paused) == (1, 1, "1", False)


def test_weights_that_a_starting_server_may_be_reading_stay_until_it_has_started(make):
    table = make()
    table.put(FakeWeights(1))
    table.replicas[0].state = "starting"
    table.put(FakeWeights(2))
    assert table.folders == ["v1", "v2"]
    table.replicas[0].state = "ready"
    table.put(FakeWeights(3))
    assert table.folders == ["v3"]


def test_a_server_elsewhere_gets_the_start_weights_through_the_shared_folder(make, tmp_path):
    table = make(count=1)
    server = table.servers[0]
    server.folder, server.calls = "some/model", []
    sound = server.agentrl_check
    server.faults["agentrl_check"] = lambda: finds("is no folder that this server can see")()
    server.agentrl_load = lambda folder: setattr(server, "folder", folder) or {"results": [{"fault": None}]}

    def check_once() -> Any:
        server.faults["agentrl_check"] = lambda: sound(str(tmp_path))
        return finds("is no folder that this server can see")()

    server.faults["agentrl_check"] = check_once
    table.run(table.admit())
    assert server.folder.startswith(str(table.root))
    assert table.sync.newest() == (Path(server.folder), 0)


def test_a_server_without_our_extension_is_refused_with_how_to_start_it(make):
    table = make()
    table.servers[0].faults["agentrl_describe"] = fails("answered /collective_rpc with 500")
    with pytest.raises(BackendError, match=r"--worker-extension-cls agentrl_vllm.extension.WorkerExtension"):
        table.run(table.admit())


def test_a_server_with_another_version_of_our_extension_is_told_from_ours(make):
    table = make()
    table.servers[0].faults["agentrl_describe"] = lambda: {"results": [{"fault": None, "folder": "/older"}]}
    with pytest.raises(PluginError, match=r"has another version of agentrl-vllm, which does not tell dtype, tied"):
        table.run(table.admit())


def test_a_full_disk_is_told_with_the_key_to_change(make):
    table = make()
    with pytest.raises(BackendError, match=r"No space left on device.*inference.backend.weights_dir"):
        table.put(Unwritable(1))
    assert table.sync.version == 0
    assert [replica.state for replica in table.replicas] == ["ready"] * 2


def test_a_folder_that_cannot_be_made_is_told_at_the_start(tmp_path):
    (tmp_path / "shared").write_text("a file")
    with pytest.raises(BackendError, match=r"cannot be handed over in .*shared.*inference.backend.weights_dir"):
        Table(tmp_path)


def test_what_a_killed_process_left_is_removed_by_the_next(make, tmp_path):
    left = """
import os, sys
from pathlib import Path
from agentrl_vllm.folders import WeightFolders
(WeightFolders(Path(sys.argv[1])).open() / "v7").mkdir()
os.kill(os.getpid(), 9)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", left, str(tmp_path / "shared")], env=env, timeout=60)
    assert list(tmp_path.glob("shared/*/v7"))
    table = make()
    assert not list(tmp_path.glob("shared/*/v7"))
    table.put(FakeWeights(1))
    assert table.folders == ["v1"]
