"""New weights reach every server whole, or it is taken out; whatever goes wrong, nothing samples from a mixture."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_of_fakes import FakeClient, FakeReplica, FakeServer, FakeWeights, Unwritable, fails, finds, hangs

from agentrl.errors import BackendError, PluginError
from agentrl_vllm.settings import VllmSettings
from agentrl_vllm.weights import WeightSync


class Table:
    """Servers, their replicas, and what puts weights into them."""

    def __init__(
        self,
        tmp_path: Path,
        count: int = 2,
        *,
        ours: bool = True,
        recompute: bool = False,
        head: float = 0,
        **settings: Any,
    ) -> None:
        """``head`` is what the servers make of that tensor when they start."""
        self.start = tmp_path / "v0"
        self.start.mkdir()
        self.root = tmp_path / "shared"
        self.servers = [FakeServer(str(self.start)) for _ in range(count)]
        for server in self.servers:
            server.tensors["head"] = head
        self.replicas = [
            FakeReplica(f"http://{number}", f"vLLM server {number}", folder=self.start, ours=ours)
            for number in range(count)
        ]
        client = FakeClient({replica.url: server for replica, server in zip(self.replicas, self.servers, strict=True)})
        keys = VllmSettings.model_validate({"weights_dir": str(self.root), **settings})
        self.said: list[str] = []
        self.sync = WeightSync(keys, client, self.start, 0, recompute=recompute, say=self.said.append)
        self.run(self.admit())

    async def admit(self) -> None:
        for replica in self.replicas:
            replica.version = None
        await asyncio.gather(*(self.sync.admit(replica) for replica in self.replicas))

    def put(self, weights: FakeWeights) -> None:
        self.run(self.sync.put(weights, self.replicas))

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await coroutine

        asyncio.run(bounded())

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


@pytest.mark.parametrize("recompute", [False, True])
def test_a_server_is_paused_from_before_the_first_tensor_to_after_its_version_is_confirmed(recompute, make):
    """What it has computed of requests under way goes only where it is to be computed again."""
    table = make(count=1, recompute=recompute)
    table.servers[0].calls.clear()
    table.put(FakeWeights(1))
    assert table.servers[0].calls == [
        *("agentrl_check", "pause", "agentrl_load", *["reset_prefix_cache"] * recompute),
        *("update_weight_version", "weight_info", "resume", "generate", "generate"),
    ]


def test_the_cache_of_a_request_is_shared_within_a_version_and_with_no_other(make):
    """Also not with what was sent while weights changed, of which nobody knows which ones computed it."""
    table = make()
    replica, server = table.replicas[0], table.servers[0]
    names: list[str] = []

    def during(folder: str) -> Any:
        names.extend(table.sync.salt(replica) for _ in range(2))
        return FakeServer.agentrl_load(server, folder)

    server.agentrl_load = during  # type: ignore[method-assign]
    for version in (1, 2):
        before = {table.sync.salt(replica) for _ in range(3)}
        assert len(before) == 1
        names.extend(before)
        table.put(FakeWeights(version))
    names.append(table.sync.salt(replica))
    assert len(set(names)) == len(names) == 7
    assert table.sync.salt(table.replicas[1]) == names[-1]


@pytest.mark.parametrize("fault", ["pause", "agentrl_load", "reset_prefix_cache", "update_weight_version"])
def test_a_server_that_fails_in_the_middle_is_taken_out_and_not_resumed(fault, make):
    table = make(recompute=True)
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
    table = make(recompute=True)
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


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("call", ["pause", "agentrl_load", "reset_prefix_cache", "update_weight_version", "resume"])
def test_an_update_that_is_cancelled_leaves_no_server_between_two_versions(call, ours, make):
    table = make(ours=ours, recompute=True)
    for server in table.servers:
        server.calls.clear()
        server.held = ["a request"]
    served = list(zip(table.replicas, table.servers, strict=True))

    async def scenario() -> None:
        updating = asyncio.ensure_future(table.sync.put(FakeWeights(1), table.replicas))
        while not any(call in server.calls for server in table.servers):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        updating.cancel()
        await asyncio.wait([updating])
        assert updating.cancelled()
        for replica, server in served:
            assert replica.state == "starting" or (not server.paused and server.label == str(server.weights))
        await table.sync.release()

    table.run(scenario())
    for replica, server in served:
        is_told = server.label == str(server.weights)
        assert (
            is_told if replica.state == "ready" else ours or is_told or (server.label, server.held) == ("default", [])
        )
        assert ours or not server.paused, "an attached server is paused for ever"


@pytest.mark.parametrize("call", ["agentrl_check", "pause", "agentrl_load", "weight_info", "generate"])
def test_a_server_that_hangs_keeps_no_other_from_its_weights(call, make):
    table = make()
    lost, sound = table.replicas
    table.servers[0].calls.clear()
    table.servers[0].faults[call] = hangs

    async def watch() -> None:
        while call not in table.servers[0].calls:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        assert lost.is_busy == (call == "agentrl_load"), "a load may take long, and nothing else"
        lost.fail("it did not answer")

    async def scenario() -> None:
        async with asyncio.timeout(60):
            await asyncio.gather(table.sync.put(FakeWeights(1), table.replicas), watch())

    table.run(scenario())
    assert (lost.state, lost.version) == ("starting", None)
    assert (sound.state, sound.version, table.servers[1].weights) == ("ready", 1, 1)


def test_a_server_that_fails_as_it_takes_weights_has_no_version(make):
    """The failure may be told in another thread, at any moment."""
    table = make()
    lost = table.replicas[0]
    table.servers[0].faults["weight_info"] = lambda: lost.fail("it is gone") or {"weight_version": "1"}
    table.put(FakeWeights(1))
    assert (lost.state, lost.version, lost.reason) == ("starting", None, "it is gone")


def test_a_server_that_gets_ready_while_others_are_asked_is_updated_too(make):
    table = make()
    late, server = table.replicas[0], table.servers[0]
    late.state = "starting"

    def gets_ready() -> Any:
        late.state = "ready"
        return {"results": [{"fault": None}]}

    table.servers[1].faults["agentrl_check"] = gets_ready
    table.put(FakeWeights(1))
    assert (late.state, late.version, server.weights, server.label) == ("ready", 1, 1, "1")


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
    starting = table.replicas[0]
    starting.state, starting.folder = "starting", table.sync.newest()[0]
    for version in (2, 3, 4):
        table.put(FakeWeights(version))
        assert table.folders == sorted(["v1", f"v{version}"])
    for server in table.servers:
        server.faults["agentrl_check"] = finds("it does not fit")
    with pytest.raises(BackendError, match="it does not fit"):
        table.put(FakeWeights(5))
    assert table.folders == ["v1", "v4"]
    for server in table.servers:
        server.faults.clear()
    starting.state, starting.version = "ready", 4
    table.put(FakeWeights(6))
    assert table.folders == ["v6"]


def test_weights_that_a_server_is_admitted_with_stay_until_it_has_loaded_them(make):
    table = make()
    table.put(FakeWeights(1))
    late, server = table.replicas[0], table.servers[0]
    late.state, late.version = "starting", None
    server.folder = str(table.start)
    load = server.agentrl_load

    async def scenario() -> None:
        server.faults["agentrl_load"] = hangs
        admitting = asyncio.ensure_future(table.sync.admit(late))
        while not late.is_busy:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        for version in (2, 3):
            await table.sync.put(FakeWeights(version), table.replicas)
            assert table.folders == sorted(["v1", f"v{version}"])
        admitting.cancel()
        await asyncio.wait([admitting])
        server.faults["agentrl_load"] = lambda: load(str(table.sync.newest()[0]))
        await table.sync.admit(late)
        late.state = "ready"
        await table.sync.put(FakeWeights(4), table.replicas)

    table.run(scenario())
    assert table.folders == ["v4"]


def test_servers_that_are_not_ours_load_the_start_weights_out_of_one_copy(make):
    """What is under the model folder's name on their machine may be another model's."""
    table = make(ours=False)
    copied, version = table.sync.newest()
    assert (table.folders, copied.name, version) == (["start"], "start", 0)
    assert [server.folder for server in table.servers] == [str(copied)] * 2
    table.put(FakeWeights(1))
    assert table.folders == ["v1"]


def test_a_server_of_ours_that_started_on_the_weights_does_not_load_them_again(make):
    table = make()
    assert not any("agentrl_load" in server.calls for server in table.servers)
    assert table.folders == []


def test_what_an_attached_server_still_holds_goes_before_it_is_resumed(make):
    """A run that was killed left it paused, with requests and with weights of a version that this run has too."""
    table = make(count=1, ours=False)
    table.put(FakeWeights(1))
    server = table.servers[0]
    server.paused, server.held, server.cache = True, ["of another run"], {"1": 9}
    server.tensors = dict.fromkeys(server.tensors, 9)
    server.calls.clear()
    table.run(table.admit())
    assert (server.weights, server.label, server.held, server.cache) == (1, "1", [], {"1": 1})
    stages = [call for call in server.calls if call in ("pause", "agentrl_load", "update_weight_version", "resume")]
    assert stages == ["pause", "agentrl_load", "update_weight_version", "resume"]
    assert "generate" not in server.calls[: server.calls.index("resume")]


def test_an_attached_server_that_does_not_see_the_folder_is_told_which_key_to_set(make):
    table = make(count=1, ours=False)
    server = table.servers[0]
    server.faults["agentrl_check"] = finds("/x is no folder that this server can see")
    server.calls.clear()
    with pytest.raises(BackendError, match=r"is no folder .*inference.backend.weights_dir .*under the same path"):
        table.run(table.admit())
    assert "pause" not in server.calls, "it goes on for others"


def test_one_that_is_admitted_twice_is_left_alone(make):
    table = make(count=1)
    table.servers[0].calls.clear()
    table.run(table.sync.admit(table.replicas[0]))
    assert table.servers[0].calls == []


def test_a_server_without_our_extension_is_refused_with_how_to_start_it(make):
    table = make()
    missing = "Call to collective_rpc method failed: Method 'agentrl_describe' is not implemented."
    table.servers[0].faults["agentrl_describe"] = fails(missing)
    with pytest.raises(BackendError, match=r"--worker-extension-cls agentrl_vllm.extension.WorkerExtension"):
        table.run(table.admit())


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (fails("the connection broke"), r"^the connection broke$"),
        (finds("AttributeError: no max_logprobs"), "does not tell what it has loaded: AttributeError"),
    ],
)
def test_other_failures_to_tell_are_not_taken_for_a_lack_of_it(fault, told, make):
    table = make()
    table.servers[0].faults["agentrl_describe"] = fault
    with pytest.raises(BackendError, match=told):
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


def test_folders_that_were_never_finished_are_removed_once_they_are_old(make, tmp_path):
    for name, age in (("old", 3600), ("new", 0)):
        folder = tmp_path / "shared" / f"agentrl-weights-{name}"
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    make()
    assert not (tmp_path / "shared" / "agentrl-weights-old").exists()
    (tmp_path / "shared" / "agentrl-weights-new").rmdir()


def test_a_cancelled_update_is_over_when_its_folder_is_written(make):
    table = make()
    begun, go_on = threading.Event(), threading.Event()

    class Slow(FakeWeights):
        def save(self, folder: Path) -> None:
            begun.set()
            assert go_on.wait(60)
            super().save(folder)

    async def scenario() -> None:
        updating = asyncio.ensure_future(table.sync.put(Slow(1), table.replicas))
        assert await asyncio.to_thread(begun.wait, 60)
        updating.cancel()
        await asyncio.sleep(0)
        assert not updating.done()
        go_on.set()
        await asyncio.wait([updating])

    table.run(scenario())
    assert table.folders == []
