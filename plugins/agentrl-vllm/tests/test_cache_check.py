"""A server whose prefix cache serves what older weights computed stops the run at the update."""

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


def in_sixteen_bits(table, *, rounding):
    for server in table.servers:
        server.dtype, server.rounding = "bfloat16", rounding
    table.run(table.admit())


def forget_names(server):
    server.salts, server.cache = False, {"": server.weights}


def test_servers_that_keep_the_versions_apart_go_on(table):
    for version in range(1, 6):
        table.put(FakeWeights(version))
    assert [replica.state for replica in table.replicas] == ["ready"] * 2


@pytest.mark.parametrize("before", [0, 5])
def test_a_cache_of_older_weights_is_found_at_once_whenever_it_comes(before, table):
    for version in range(1, before + 1):
        table.put(FakeWeights(version))
    forget_names(table.servers[1])
    with pytest.raises(BackendError, match=r"logprobs of vLLM server 1 differ by .* \(stale cache\)") as told:
        table.put(FakeWeights(before + 1))
    assert told.match(f"after the update to version {before + 1} ")


def test_sixteen_bits_may_round_more(table):
    in_sixteen_bits(table, rounding=0.05)
    for version in range(1, 4):
        table.put(FakeWeights(version))
    forget_names(table.servers[0])
    with pytest.raises(BackendError, match="stale cache"):
        table.put(FakeWeights(4))


def test_a_server_that_comes_later_is_checked_too(table):
    late, server = table.replicas[0], table.servers[0]
    late.state, late.version = "starting", None
    table.put(FakeWeights(1))
    late.life += 1
    table.run(table.sync.admit(late))
    late.state = "ready"
    forget_names(server)
    with pytest.raises(BackendError, match=r"after the update to version 2 the logprobs of vLLM server 0 differ"):
        table.put(FakeWeights(2))


def test_a_server_that_was_never_looked_at_is_no_failure(table):
    table.replicas[0].life += 1
    forget_names(table.servers[0])
    table.put(FakeWeights(1))
    assert [replica.version for replica in table.replicas] == [1, 1]


def test_a_server_that_dies_at_the_check_is_taken_out_and_training_goes_on(table):
    table.servers[0].faults["generate"] = fails("it is gone")
    table.put(FakeWeights(1))
    assert table.replicas[0].state == "starting"
    assert "did not answer a check of its cache" in str(table.replicas[0].reason)
    assert table.replicas[1].version == 1
