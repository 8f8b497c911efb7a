"""Weights that are sent reach every server whole, or it is taken out; one that comes back is lent the newest."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_of_fakes import TENSORS, FakeClient, FakeReplica, FakeServer, FakeWeights, fails, finds

from agentrl.errors import BackendError, ConfigError
from agentrl_vllm import weights as weights_module
from agentrl_vllm.sending import Sent
from agentrl_vllm.settings import VllmSettings
from agentrl_vllm.transfer import Place, Transfer
from agentrl_vllm.weights import WeightSync


class Server(FakeServer):
    """One that can be sent weights."""

    def agentrl_fits(self, names: str) -> Any:
        lacking = sorted(set(TENSORS) - set(json.loads(names)))
        return {"results": [{"fault": f"the new weights lack {lacking[0]}" if lacking else None}]}


class Table:
    """Servers, and what is sent to them instead of by a network."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, bare: bool = False, **settings: Any) -> None:
        start = tmp_path / "v0"
        start.mkdir()
        self.servers = [Server(str(start)) for _ in range(2)]
        self.replicas = [FakeReplica(f"http://{number}", f"vLLM server {number}") for number in range(2)]
        self.by_url = {each.url: server for each, server in zip(self.replicas, self.servers, strict=True)}
        self.faults: dict[str, str] = {}
        self.refusals: dict[str, str] = {}
        self.ways: list[str] = []
        self.lent: list[str] = []
        self.newest = FakeWeights(0)
        self.said: list[str] = []
        self.place = Place("cpu")
        table = self

        async def send(transfer: Transfer, weights: Any, servers: Any, dtype: str) -> Sent:
            table.ways.append(transfer.way)
            for url in servers:
                assert table.by_url[url].paused, "weights change under a server that samples"
                if url not in table.faults and not (transfer.way == "nccl" and url in table.refusals):
                    table.by_url[url].tensors = dict.fromkeys(TENSORS, weights.version)
            faults = {url: fault for url, fault in table.faults.items() if url in servers}
            refusals = {url: why for url, why in table.refusals.items() if url in servers and transfer.way == "nccl"}
            return Sent(1000, 0.5, faults, refusals)

        async def find_place(weights: Any) -> Place:
            return self.place

        monkeypatch.setattr(Transfer, "send", send)
        monkeypatch.setattr(weights_module, "find_place", find_place)
        keys = VllmSettings.model_validate({"weights_dir": str(tmp_path / "shared"), "transfer": "stream", **settings})
        self.sync = WeightSync(keys, FakeClient(self.by_url), start, 0, say=self.said.append, lend=self.lend, bare=bare)
        for replica in self.replicas:
            replica.version = None
        self.run(self.admit())

    @contextlib.asynccontextmanager
    async def lend(self, borrower: str) -> AsyncIterator[FakeWeights]:
        self.lent.append(borrower)
        yield self.newest

    async def admit(self) -> None:
        await asyncio.gather(*(self.sync.admit(each) for each in self.replicas))

    def put(self, weights: FakeWeights) -> None:
        self.newest = weights
        self.run(self.sync.put(weights, self.replicas))

    def run(self, work: Any) -> Any:
        return asyncio.run(asyncio.wait_for(work, 30))

    def states(self) -> list[tuple[str, int | None]]:
        return [(each.state, each.version) for each in self.replicas]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Table]]:
    made: list[Table] = []

    def build(**options: Any) -> Table:
        made.append(Table(tmp_path, monkeypatch, **options))
        return made[-1]

    yield build
    for table in made:
        table.sync.close()


def test_all_servers_are_sent_weights_at_once_while_they_are_paused(make) -> None:
    table = make()
    table.put(FakeWeights(1))
    assert table.states() == [("ready", 1)] * 2
    assert table.ways == ["stream"]
    assert table.sync.moved == 1000
    assert not any(server.paused for server in table.servers)
    assert [server.label for server in table.servers] == ["1", "1"]
    assert not list(table.sync.open().glob("v*"))


def test_one_that_breaks_off_is_taken_out_and_lent_the_newest_weights_when_it_is_back(make) -> None:
    table = make()
    table.faults["http://1"] = "the connection was closed in the middle of a tensor"
    table.put(FakeWeights(1))
    assert table.states() == [("ready", 1), ("starting", None)]
    assert "did not take new weights: the connection was closed" in table.replicas[1].reason
    assert table.servers[1].paused, "a server between two versions goes on"
    table.faults.clear()
    table.replicas[1].life += 1
    table.servers[1].tensors = dict.fromkeys(TENSORS, 0)
    table.run(table.sync.admit(table.replicas[1]))
    assert table.lent == ["a server that has started"]
    assert table.replicas[1].version == 1
    assert table.servers[1].tensors == dict.fromkeys(TENSORS, 1)


def test_one_that_comes_back_with_other_numbers_than_it_was_sent_is_refused(make) -> None:
    table = make()
    table.put(FakeWeights(1))
    replica, server = table.replicas[0], table.servers[0]
    replica.version, replica.life = None, 2
    server.faults["agentrl_digests"] = lambda: Server("x", dict.fromkeys(TENSORS, 0)).agentrl_digests()
    with pytest.raises(BackendError, match="has other numbers in embedding, head than were sent to it"):
        table.run(table.sync.admit(replica))
    assert replica.version is None


def test_names_that_are_not_the_models_change_nothing(make) -> None:
    table = make()
    new = FakeWeights(1)
    new.names = lambda: ["embedding"]
    with pytest.raises(BackendError, match="the new weights lack head"):
        table.put(new)
    assert table.states() == [("ready", 0)] * 2
    assert table.ways == []


@pytest.mark.parametrize("name", ["pause", "agentrl_fits", "update_weight_version", "resume"])
def test_one_that_fails_at_a_call_is_taken_out_and_the_other_has_the_weights(name, make) -> None:
    table = make()
    table.servers[0].faults[name] = finds("broken") if name == "agentrl_fits" else fails("broken")
    table.put(FakeWeights(1))
    assert [state for state, _ in table.states()] == ["starting", "ready"]
    assert table.replicas[1].version == 1


def test_servers_without_weights_are_lent_them_before_they_serve(make) -> None:
    table = make(bare=True)
    assert table.lent == ["a server that has started"] * 2
    assert table.states() == [("ready", 0)] * 2


def test_what_differs_between_two_servers_is_held_against_the_lent_weights(make) -> None:
    table = make()
    table.put(FakeWeights(1))
    table.servers[1].tensors["head"] = 0

    async def odd() -> Any:
        return await table.sync.odd_one({each: await table.sync.held(each) for each in table.replicas})

    found = table.run(odd())
    assert found == table.run(table.sync.held(table.replicas[1]))


def test_without_a_group_of_nccl_weights_go_by_stream_where_nobody_has_asked_for_nccl(make) -> None:
    table = make(transfer="auto")
    table.place = Place("cuda")
    for server in table.servers:
        described = server.agentrl_describe()
        described["results"][0]["device"] = "cuda"
        server.faults["agentrl_describe"] = lambda described=described: described
    for replica in table.replicas:
        replica.version = None
    table.sync._newest = weights_module._Newest(table.sync._newest.folder, -1)
    table.run(table.admit())
    table.refusals = {each.url: "no group with the learner: other versions of NCCL" for each in table.replicas}
    table.put(FakeWeights(1))
    assert table.ways == ["nccl", "stream"]
    assert any("other versions of NCCL" in text for text in table.said)
    assert table.states() == [("ready", 1)] * 2
    table.put(FakeWeights(2))
    assert table.ways == ["nccl", "stream", "stream"]


def test_a_way_that_cannot_be_is_an_error_of_the_config(make) -> None:
    table = make(transfer="nccl")
    with pytest.raises(ConfigError, match="transfer=nccl is between GPUs"):
        table.put(FakeWeights(1))
