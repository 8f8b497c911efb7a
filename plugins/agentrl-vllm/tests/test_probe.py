"""A server whose logprobs are not the learner's stops training, with the likely cause."""

from __future__ import annotations

import pytest
from fleet_of_fakes import FakeWeights, fails
from test_weights import Table

from agentrl.errors import BackendError


@pytest.fixture
def table(tmp_path):
    made = Table(tmp_path)
    yield made
    made.sync.close()


def test_servers_that_agree_with_the_learner_go_on(table):
    for version in range(1, 6):
        table.put(FakeWeights(version))
    assert [replica.state for replica in table.replicas] == ["ready"] * 2


def keep_weights(server):
    server.agentrl_load = lambda folder: {"results": [{"fault": None}]}


def keep_cache(server):
    server.faults["reset_prefix_cache"] = lambda: {"success": True}


def round_off(server):
    server.rounding = 0.005


def stay_tied(server):
    server.tied, server.rounding = True, 2.0


def serve_another(server):
    server.rounding = 2.0


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        (keep_weights, "it still computes with the older weights"),
        (keep_cache, "it goes on with a prefix cache that older weights computed"),
        (round_off, r"float32 rounds too much for this model \(set inference.backend.dtype to float32\)"),
        (serve_another, "it runs another model than the learner"),
    ],
)
def test_a_mismatch_names_its_size_and_the_likely_cause(wrong, cause, table):
    wrong(table.servers[1])
    with pytest.raises(
        BackendError, match=r"after the update to version 1 the logprobs of vLLM server 1 differ"
    ) as told:
        table.put(FakeWeights(1))
    assert told.match(cause)


def test_a_tied_head_is_suspected_where_there_is_one(tmp_path, table):
    for server in table.servers:
        server.tied = True
    table.run(table.admit())
    serve_another(table.servers[0])
    with pytest.raises(BackendError, match="embeddings are tied, and its head may be the old one"):
        table.put(FakeWeights(1))


def test_sixteen_bits_may_round_more(tmp_path, table):
    for server in table.servers:
        server.dtype, server.rounding = "bfloat16", 0.05
    table.run(table.admit())
    table.put(FakeWeights(1))


def test_only_the_first_updates_are_probed_unless_asked_for_more(tmp_path):
    for number, (settings, probed) in enumerate(
        [({}, [1, 2, 3]), ({"probe_updates": 0}, []), ({"probe_updates": 1, "probe_every": 3}, [1, 3, 6])]
    ):
        (tmp_path / str(number)).mkdir()
        table = Table(tmp_path / str(number), count=1, **settings)
        seen = []
        for version in range(1, 8):
            table.servers[0].calls.clear()
            table.put(FakeWeights(version))
            if "generate" in table.servers[0].calls:
                seen.append(version)
        table.sync.close()
        assert seen == probed


def test_a_server_that_dies_at_the_probe_is_taken_out_and_training_goes_on(table):
    table.servers[0].faults["generate"] = fails("it is gone")
    table.put(FakeWeights(1))
    assert table.replicas[0].state == "starting"
    assert "did not answer a probe" in str(table.replicas[0].reason)
    assert table.replicas[1].version == 1
