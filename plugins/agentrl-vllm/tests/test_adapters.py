"""Adapters on servers: each under a name of its own, which requests keep, and which nothing else ever has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import begun, stopped_by
from fleet_of_fakes import AdapterWeights, FakeServer, FakeWeights
from stub import Stub
from test_backend import attached
from test_weights import Table
from well import TINY

from agentrl.errors import BackendError, ConfigError
from agentrl.inference.contract import AdapterContext, BackendContext
from agentrl_vllm.backend import VllmBackend
from agentrl_vllm.client import Reply
from agentrl_vllm.command import ServingCommand
from agentrl_vllm.installation import Installation
from agentrl_vllm.settings import VllmSettings

STEPS = 3
INSTALLATION = Installation(Path("/vllm/python"), "0.32.0", True)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Table]]:
    made: list[Table] = []

    def build(**settings: Any) -> Table:
        made.append(Table(tmp_path, **settings))
        return made[-1]

    yield build
    for table in made:
        table.sync.close()


def test_each_update_has_a_name_of_its_own_and_the_one_before_is_unloaded(make):
    table: Table = make()
    for server in table.servers:
        server.calls.clear()
    for version in (1, 2, 3):
        table.put(AdapterWeights(version))
        assert [replica.version for replica in table.replicas] == [version] * 2
        assert [server.label for server in table.servers] == [str(version)] * 2
        assert len(table.folders) == 1, "folders of older adapters are not removed"
    for server in table.servers:
        assert list(server.adapters.values()) == [1, 2, 3]
        assert server.unloaded == list(server.adapters)[:2]
        assert not {"pause", "agentrl_load"} & {*server.calls}, "an adapter needs no pause"
        assert server.weights == 0


def test_a_request_under_way_keeps_its_adapter_and_its_version(make):
    table: Table = make(count=1)
    (server,), (replica,) = table.servers, table.replicas
    table.put(AdapterWeights(1))
    first = next(iter(server.adapters))
    with table.sync.use(replica) as use:
        assert (use.fields["model"], use.fixed) == (first, 1)
        table.put(AdapterWeights(2))
        table.put(AdapterWeights(3))
        assert first not in server.unloaded, "it was unloaded while a request named it"
        assert len(table.folders) == 2
        with table.sync.use(replica) as later:
            assert (later.fields["model"], later.fixed) == (list(server.adapters)[-1], 3)
    table.put(AdapterWeights(4))
    assert first in server.unloaded


def test_a_server_that_comes_back_is_given_the_newest_adapter_under_a_new_name(make):
    table: Table = make(count=1)
    (server,), (replica,) = table.servers, table.replicas
    table.put(AdapterWeights(1))
    replica.life, replica.version = 2, None
    table.run(table.sync.admit(replica))
    assert list(server.adapters.values()) == [1, 1]
    with table.sync.use(replica) as use:
        assert use.fields["model"] == list(server.adapters)[-1]


def test_a_server_that_refuses_an_adapter_goes_on_with_what_it_has(make):
    table: Table = make(count=1)
    table.put(AdapterWeights(1))
    refusal = Reply(400, b'{"error": {"message": "LoRA rank 64 is greater than max_lora_rank 16"}}')
    table.servers[0].faults["load_lora_adapter"] = lambda: refusal
    with pytest.raises(BackendError, match="LoRA rank 64 is greater than max_lora_rank 16: it does not take"):
        table.put(AdapterWeights(2))
    assert (table.replicas[0].state, table.replicas[0].version, table.sync.version) == ("ready", 1, 1)


def test_whole_weights_after_an_adapter_are_what_requests_are_for(make):
    table: Table = make(count=1)
    table.put(AdapterWeights(1))
    table.put(FakeWeights(2))
    with table.sync.use(table.replicas[0]) as use:
        assert ("model" in use.fields, use.fixed) == (False, None)


@pytest.mark.parametrize(
    ("fault", "inability", "said"),
    [
        ("", "", ""),
        ("", "its weights are quantised (awq)", ""),
        ("an old adapter", "", "it still holds head.lora_A.weight, head.lora_B.weight of version 2 (old)"),
        ("an old adapter", "its weights are quantised (awq)", "(numeric): it computes with the weights of version 2"),
    ],
)
def test_an_old_adapter_under_the_right_name_stops_a_run(fault: str, inability: str, said: str, tmp_path: Path) -> None:
    server = FakeServer("tiny", inability=inability)
    messages: list[str] = []

    async def scenario(backend: VllmBackend, listening: Stub) -> None:
        await backend.start()
        proof = await begun(backend, AdapterWeights(0))
        for version in range(1, STEPS):
            assert not await stopped_by(backend, proof, AdapterWeights(version))
        server.keeps_old = bool(fault)
        messages.append(await stopped_by(backend, proof, AdapterWeights(STEPS)))

    attached(server, tmp_path, scenario)
    assert said in messages[0]
    assert bool(said) == bool(messages[0])


def test_what_is_under_way_cannot_be_recomputed_under_another_adapter() -> None:
    context = BackendContext(TINY, in_flight="recompute", adapter=AdapterContext(4), options={"urls": ["http://a"]})
    with pytest.raises(ConfigError, match=r"inference.in_flight=recompute cannot be with training.lora and vLLM"):
        VllmBackend(context)


@pytest.mark.parametrize(("rank", "told"), [(1, "1"), (4, "8"), (16, "16"), (17, "32")])
def test_a_server_is_started_for_adapters_of_the_rank(rank: int, told: str, tmp_path: Path) -> None:
    serving = ServingCommand(
        INSTALLATION, VllmSettings(), {}, 0, sequences=8, adapter=AdapterContext(rank, ("q_proj", "down_proj"))
    )
    command = serving.build(TINY, 8000, tmp_path)
    argv = command.argv
    assert argv[argv.index("--max-lora-rank") + 1] == told
    assert "--enable-lora" in argv
    after = argv.index("--lora-target-modules") + 1
    assert argv[after : after + 2] == ("q_proj", "down_proj")
    assert command.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_a_rank_that_no_server_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training.lora.rank=513 is more than vLLM takes \(set it to at most 512"):
        ServingCommand(INSTALLATION, VllmSettings(), {}, 0, sequences=8, adapter=AdapterContext(513))
