"""A server whose logprobs are not the learner's stops training, with the likely explanation."""

from __future__ import annotations

import random

import pytest
from fleet_of_fakes import FakeWeights, fails
from test_weights import Table

from agentrl.errors import BackendError
from agentrl_vllm.agreement import Scores, score_change

TOKENS = 150


def test_a_server_that_moves_as_far_and_elsewhere_follows_in_part() -> None:
    """A part of the weights is old: along the learner's path it went most of the way, and aside from it as far."""
    chance = random.Random(1)
    none, learner = [0.0] * TOKENS, [chance.uniform(-0.5, 0.5) for _ in range(TOKENS)]
    server = [0.8 * move + chance.uniform(-0.5, 0.5) for move in learner]
    moved = score_change(Scores(none, none), Scores(server, learner))
    assert moved.share > 0.5
    assert moved.is_partial
    assert not score_change(Scores([0.2] * TOKENS, none), Scores(server, learner)).is_partial, "rounding hides that"


def test_a_learner_that_has_not_moved_says_nothing() -> None:
    none = [0.0] * TOKENS
    moved = score_change(Scores(none, none), Scores([0.1] * TOKENS, none))
    assert not moved.is_missing
    assert not moved.is_partial


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
    server.salts, server.cache = False, {"": 0}


def round_off(server):
    server.off = 0.005


def serve_another(server):
    server.off = 2.0


@pytest.mark.parametrize(
    ("wrong", "explanation"),
    [
        (keep_weights, "it still computes with the older weights"),
        (keep_cache, "it goes on with a prefix cache that older weights computed"),
        (round_off, r"float32 rounds too much for this model \(set inference.backend.dtype to float32\)"),
        (serve_another, "it runs another model than the learner"),
    ],
)
def test_a_mismatch_names_its_size_and_the_likely_cause(wrong, explanation, table):
    wrong(table.servers[1])
    with pytest.raises(
        BackendError, match=r"after the update to version 1 the logprobs of vLLM server 1 differ"
    ) as told:
        table.put(FakeWeights(1))
    assert told.match(explanation)


def test_a_tied_head_is_suspected_where_there_is_one(tmp_path, table):
    for server in table.servers:
        server.tied = True
    table.run(table.admit())
    serve_another(table.servers[0])
    with pytest.raises(BackendError, match="embeddings are tied, and its head may be the old one"):
        table.put(FakeWeights(1))


def put_several(table, count, move):
    for version in range(1, count + 1):
        table.put(FakeWeights(version, move))


def in_sixteen_bits(table, *, rounding=0.05):
    for server in table.servers:
        server.dtype, server.rounding = "bfloat16", rounding
    table.run(table.admit())


@pytest.mark.parametrize("move", [0, 1e-7, 1e-4, 1e-2, 0.1, 1.0])
def test_sixteen_bits_may_round_more(move, table):
    """However far an update goes."""
    in_sixteen_bits(table)
    for server in table.servers:
        server.move = move
    put_several(table, 3, move)


def test_a_server_that_stays_where_it_is_is_found_at_the_smallest_learning_rate(table):
    """Its logprobs are within what its type explains, and not one of them has moved."""
    keep_weights(table.servers[1])
    table.servers[0].move = 1e-4
    table.put(FakeWeights(1, 1e-4))
    with pytest.raises(BackendError, match=r"moved by 3.1e-05 .* of vLLM server 1 by 0, .* with the older weights"):
        table.put(FakeWeights(2, 1e-4))


@pytest.mark.parametrize("share", [0, 0.3])
def test_a_server_that_follows_in_part_is_found_behind_its_rounding_as_the_parts_add_up(share, table):
    in_sixteen_bits(table, rounding=0.02)
    table.servers[0].move, table.servers[1].move = 0.05, 0.05 * share
    with pytest.raises(BackendError, match=r"vLLM server 1 (differ|by) .* only a part of the new weights has reached"):
        put_several(table, 20, 0.05)
    assert "the logprobs of vLLM server 1 have not followed the learner's yet" in "".join(table.said)


@pytest.mark.parametrize("resolved", [2, 8])
def test_steps_that_sixteen_bits_swallow_until_they_add_up_are_said_to_and_stop_nothing(resolved, table):
    in_sixteen_bits(table, rounding=0.0)
    for server in table.servers:
        server.move, server.resolved = 0.005, resolved
    put_several(table, 30, 0.005)
    assert len(table.said) == 2
    assert all("smaller than bfloat16 resolves" in said for said in table.said)
    for server in table.servers:
        server.calls.clear()
    table.put(FakeWeights(31, 0.005))
    assert not any("generate" in server.calls for server in table.servers), "it goes on to compare what has followed"


def test_a_tied_head_is_suspected_where_a_server_follows_in_part(table):
    for server in table.servers:
        server.tied = True
    table.run(table.admit())
    table.servers[1].move, table.servers[0].move = 0.0003, 0.001
    table.put(FakeWeights(1, 0.001))
    with pytest.raises(BackendError, match="embeddings are tied, and its head may be the old one"):
        table.put(FakeWeights(2, 0.001))


def test_a_server_that_stops_following_later_is_said_to_compute_with_older_weights(table):
    """It has moved since the start, and not since the last update."""
    table.put(FakeWeights(1))
    keep_weights(table.servers[1])
    with pytest.raises(BackendError, match="it still computes with the older weights"):
        table.put(FakeWeights(2))


def test_a_server_that_comes_later_is_probed_as_often(tmp_path):
    table = Table(tmp_path, probe_updates=1)
    late, server = table.replicas[0], table.servers[0]
    late.state, late.version = "starting", None
    table.put(FakeWeights(1))
    late.life += 1
    table.run(table.sync.admit(late))
    late.state = "ready"
    serve_another(server)
    with pytest.raises(BackendError, match=r"after the update to version 2 the logprobs of vLLM server 0 differ"):
        table.put(FakeWeights(2))
    table.sync.close()


def test_a_server_that_was_never_looked_at_is_no_failure(table):
    table.replicas[0].life += 1
    table.put(FakeWeights(1))
    assert [replica.version for replica in table.replicas] == [1, 1]


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
