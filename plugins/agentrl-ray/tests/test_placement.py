"""Whether hosts fit nodes: held to a search without cleverness."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.hosting.contract import HostSpec
from agentrl_ray.placement import Node, bundle_of, fits, told_hosts, told_nodes

RESOURCES = st.fixed_dictionaries({"CPU": st.integers(0, 3)}, optional={"GPU": st.integers(1, 2)})


def fits_somehow(bundles: list[dict[str, float]], nodes: list[dict[str, float]], strategy: str) -> bool:
    for places in product(range(len(nodes)), repeat=len(bundles)):
        if strategy == "strict_pack" and len(set(places)) > 1:
            continue
        if strategy == "strict_spread" and len(set(places)) < len(places):
            continue
        held: list[dict[str, float]] = [{} for _ in nodes]
        for place, bundle in zip(places, bundles, strict=True):
            for name, amount in bundle.items():
                held[place][name] = held[place].get(name, 0) + amount
        if all(
            node.get(name, 0) >= amount for node, took in zip(nodes, held, strict=True) for name, amount in took.items()
        ):
            return True
    return False


@given(
    st.lists(RESOURCES.map(lambda each: {**each, "CPU": max(1, each["CPU"])}), min_size=1, max_size=4),
    st.lists(RESOURCES, max_size=3),
    st.sampled_from(["pack", "spread", "strict_pack", "strict_spread"]),
)
def test_it_fits_where_some_placement_does(
    bundles: list[dict[str, float]], nodes: list[dict[str, float]], strategy: str
) -> None:
    assert fits(bundles, nodes, strategy) == fits_somehow(bundles, nodes, strategy)


def test_many_equal_hosts_are_judged_at_once() -> None:
    nodes = [{"CPU": 7.0}] * 100
    assert fits([{"CPU": 2.0}] * 300, nodes, "pack")
    assert not fits([{"CPU": 2.0}] * 301, nodes, "pack")


def test_what_is_told() -> None:
    specs = [HostSpec(f"rank {number}", "a:B", gpus=1.0) for number in range(2)]
    assert told_hosts(specs, [bundle_of(spec) for spec in specs]) == (
        "2 hosts (rank 0, rank 1) with 1 processor and 1 GPU each"
    )
    node = Node("ab", "far", "10.0.0.2", {"CPU": 8.0, "GPU": 2.0, "memory": 1.0}, {"CPU": 0.5})
    assert told_nodes([node], ["CPU", "GPU"], free=True) == (
        "far (10.0.0.2) 8 processors and 2 GPUs of which 0.5 processors and 0 GPUs free"
    )
    assert told_nodes([], ["CPU"], free=True) == "no node"


@pytest.mark.parametrize("spec", [HostSpec("one", "a:B", cpus=0.0)])
def test_a_host_without_anything_takes_a_trace(spec: HostSpec) -> None:
    assert bundle_of(spec) == {"CPU": 0.001}
