"""Hosts on a real cluster of two nodes: placed, asked, lost, stopped."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from agentrl import ConfigError, HostLostError, RunError
from agentrl.hosting.contract import HostSpec
from agentrl_ray.cluster import Cluster
from agentrl_ray.hosts import RayHosts

PATIENCE_S = 60.0
Make = Callable[..., RayHosts]


def spec(name: str = "one", log: Path | None = None, env: dict[str, str] | None = None, **keys: Any) -> HostSpec:
    cpus = keys.pop("cpus", 1.0)
    return HostSpec(name, "held:Thing", keys, cpus=cpus, log=log, env=env or {})


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def free_again(cluster: Cluster) -> bool:
    """Whether soon nobody holds a processor."""
    until = time.monotonic() + 30
    while any(node.total["CPU"] > node.free.get("CPU", 0.0) for node in cluster.nodes()):
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def test_hosts_are_placed_asked_and_gone(hosts_of: Make, cluster: Cluster, tmp_path: Path, told: list[str]) -> None:
    hosts = hosts_of(placement="strict_spread", env={"OF_A_TEST": "all"})
    log = tmp_path / "logs" / "one.log"
    one, two = hosts.start(
        [spec("one", log, folder=str(tmp_path)), spec("two", env={"OF_A_TEST": "own"})], patience=PATIENCE_S
    )
    assert one.node != two.node
    assert one.address == two.address == hosts.address
    # In the order of the questions, whoever answers first.
    asked = [one.ask("add", number) for number in range(20)]
    assert [each.result(10) for each in asked] == [sum(range(number + 1)) for number in range(20)]
    # Coroutines run beside each other, and beside a plain method.
    slow = one.ask("busy", 1.0)
    waits = [one.ask("wait", 0.1) for _ in range(5)]
    assert [each.result(10) for each in waits] == ["waited"] * 5
    assert not slow.done()
    assert slow.result(10).startswith("agentrl-host")
    # A coroutine that is cancelled hears of it.
    waiting = one.ask("wait", 60)
    time.sleep(0.2)
    assert waiting.cancel()
    with pytest.raises(CancelledError):
        waiting.result(1)
    until = time.monotonic() + 10
    while one.ask("add", 0).result(10) != -1:
        assert time.monotonic() < until
    # Arrays are the host's own.
    assert one.ask("raised", np.zeros(3)).result(10).tolist() == [1, 1, 1]
    (pid, folder, variable), (_, _, own) = one.ask("where").result(10), two.ask("where").result(10)
    assert (folder, variable, own) == (os.getcwd(), "all", "own")
    with pytest.raises(ConfigError, match="it is refused") as refused:
        one.ask("refused").result(10)
    assert refused.value.fix == "ask otherwise"
    with pytest.raises(RunError, match="one could not failed: ValueError: a number is wrong"):
        one.ask("failed").result(10)
    with pytest.raises(RunError, match="no attribute 'missing'"):
        one.ask("missing").result(10)
    one.ask("told", "with sk-agentrl-0123456789abcdef0123456789abcdef in it").result(10)
    one.stop(5.0)
    one.stop(5.0)
    assert ended(pid)
    assert (tmp_path / f"closed.{pid}").exists()
    lines = log.read_text()
    assert f"one, process {pid} on {one.node}" in lines
    assert "made\n" in lines
    assert ":actor_name:" not in lines
    with pytest.raises(HostLostError, match=r"one on .* was stopped"):
        one.ask("add", 1).result(10)
    hosts.close(1.0)
    assert free_again(cluster)
    with pytest.raises(RunError, match="the run is over"):
        hosts.start([spec()], patience=1.0)


def test_a_host_that_dies_is_named_with_its_node_and_last_words(hosts_of: Make) -> None:
    [one] = hosts_of().start([spec()], patience=PATIENCE_S)
    waiting = one.ask("wait", 60)
    asked = one.ask("die", "these were the last words")
    for each in (asked, waiting):
        with pytest.raises(HostLostError) as lost:
            each.result(30)
        assert lost.value.message.startswith(f"one on {one.node} was lost: its process has died")
        assert "these were the last words" in lost.value.message
    with pytest.raises(HostLostError, match="one on"):
        one.ask("add", 1).result(10)


def test_a_node_that_dies_is_named(hosts_of: Make, third: Callable[[], Any], nodes: Any) -> None:
    hosts, node = hosts_of(), third()
    [where] = [each for each in hosts.cluster.nodes() if "third" in each.total]
    host = hosts.start_on(where, spec("far"), patience=PATIENCE_S, resources={}, read=())
    waiting = host.ask("wait", 600)
    nodes.remove_node(node, allow_graceful=False)
    with pytest.raises(HostLostError, match=f"far on {where.hostname} .*{where.id[:8]}.* was lost: its"):
        waiting.result(60)
    until = time.monotonic() + 60
    while where.id in {each.id for each in hosts.cluster.nodes()}:  # Others would place hosts on it.
        assert time.monotonic() < until
        time.sleep(0.2)
    with pytest.raises(RunError, match=r"waited .* for room|is gone"):
        hosts.start_on(where, spec("again"), patience=PATIENCE_S, resources={}, read=())


def test_what_the_making_of_an_object_raises_is_raised_and_nothing_is_left(hosts_of: Make, cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="it cannot be made"):
        hosts_of().start([spec("one"), spec("two", breaks=True)], patience=PATIENCE_S)
    assert free_again(cluster)


@pytest.mark.parametrize(
    ("count", "cpus", "placement", "words"),
    [
        (1, 4.0, "pack", r"1 host \(host 0\) with 4 processors do not fit (?=.* 3 processors).* 2 processors"),
        (3, 2.0, "pack", r"3 hosts \(host 0, host 1, host 2\) with 2 processors each do not fit"),
        (3, 1.0, "strict_spread", r"placed by scheduler.placement=strict_spread do not fit"),
        (4, 1.0, "strict_pack", r"placed by scheduler.placement=strict_pack do not fit"),
    ],
)
def test_what_can_never_be_placed_is_refused_at_once(
    hosts_of: Make, count: int, cpus: float, placement: str, words: str
) -> None:
    specs = [spec(f"host {number}", cpus=cpus) for number in range(count)]
    with pytest.raises(ConfigError, match=words) as refused:
        hosts_of(placement=placement).start(specs, patience=PATIENCE_S)
    assert refused.value.fix is not None
    assert "autoscaling" in refused.value.fix


def test_what_has_no_room_now_is_waited_for_aloud_until_the_deadline(
    hosts_of: Make, cluster: Cluster, told: list[str]
) -> None:
    hosts = hosts_of(patience=3.0)
    hosts.start([spec("first", cpus=3.0)], patience=PATIENCE_S)
    with pytest.raises(RunError, match=r"waited 3 s for room for 1 host \(second\) with 3 processors on the cluster"):
        hosts.start([spec("second", cpus=3.0)], patience=PATIENCE_S)
    assert [line for line in told if "waiting for room for 1 host (second)" in line and "0 processors free" in line]
    with pytest.raises(RunError, match="waited 1 s"):
        hosts_of(autoscaling=True).start([spec("far", cpus=64.0)], patience=1.0)


def test_hosts_that_need_not_be_together_are_all_there_or_none_too(hosts_of: Make, cluster: Cluster) -> None:
    with pytest.raises(RunError, match=r"waited .* s for room for 1 host"):
        hosts_of(patience=2.0).start([spec("first", cpus=3.0), spec("second", cpus=3.0)], patience=20.0, together=False)
    assert free_again(cluster)


def test_a_start_that_is_given_up_ends_and_leaves_nothing(hosts_of: Make, cluster: Cluster) -> None:
    hosts, given_up = hosts_of(patience=600.0), threading.Event()
    hosts.start([spec("first", cpus=3.0)], patience=PATIENCE_S)
    threading.Timer(1.0, given_up.set).start()
    with pytest.raises(RunError, match=r"the run ended while 1 host .* waited for room"):
        hosts.start([spec("second", cpus=3.0)], patience=600.0, given_up=given_up)
    hosts.close(2.0)
    assert free_again(cluster)


def test_two_hosts_of_a_run_do_not_share_a_name(hosts_of: Make) -> None:
    with pytest.raises(ValueError, match="do not share a name: same"):
        hosts_of().start([spec("same"), spec("same")], patience=1.0)


def test_a_folder_that_a_node_does_not_see_is_named(hosts_of: Make, tmp_path: Path, monkeypatch: Any) -> None:
    """Both nodes are this machine: a folder is hidden from one by being another one by the time that it looks."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    shared = {"written": {"run.dir": tmp_path / "runs"}, "read": {"model.name": tmp_path / "model"}}
    hosts = hosts_of(**shared)
    hosts.start([spec("seeing")], patience=PATIENCE_S)
    assert list((tmp_path / "runs").iterdir()) == []
    hidden = hosts_of(written={"run.dir": tmp_path / "runs"})
    from agentrl_ray import sharing

    whole = sharing.Mark

    def elsewhere(key: str, path: str, file: str | None, digest: str) -> sharing.Mark:
        return whole(key, f"{path}-of-another-machine", file, digest)

    monkeypatch.setattr(sharing, "Mark", elsewhere)
    with pytest.raises(ConfigError, match=r"run.dir: blind on .* does not see .*of-another-machine .* is not there"):
        hidden.start([spec("blind")], patience=PATIENCE_S)
    assert ray.is_initialized()
