"""Whether hosts fit the nodes of a cluster at all, and what to say where they do not. Pure: no Ray is asked here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentrl.hosting.contract import HostSpec

__all__ = ["Node", "bundle_of", "fits", "told_hosts", "told_nodes"]

Resources = Mapping[str, float]

_STEPS = 20_000
"""Placements that are tried before an answer is given up: then the hosts are said to fit."""
_TRACE = 0.001
"""Processors of a host that asks for nothing, since Ray places nothing else."""
_SMALL = 1e-6
_WORDS = {"CPU": ("processor", "processors"), "GPU": ("GPU", "GPUs")}
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive."""

    id: str
    hostname: str
    address: str
    total: Resources
    """What it has in all, by Ray's names of resources."""
    free: Resources
    """What of that nobody holds."""

    @property
    def words(self) -> str:
        """Its name and address."""
        return f"{self.hostname} ({self.address}, node {self.id[:8]})"


def bundle_of(spec: HostSpec) -> dict[str, float]:
    """The resources that a host takes, by Ray's names."""
    asked = {"CPU": spec.cpus, "GPU": spec.gpus}
    return {name: float(amount) for name, amount in asked.items() if amount > 0} or {"CPU": _TRACE}


def fits(bundles: Sequence[Resources], nodes: Sequence[Resources], strategy: str) -> bool:
    """Whether ``bundles`` can lie on ``nodes``, which are empty, under a ``strategy`` of ``RaySettings.placement``.

    Where that would take too long to find out, the answer is yes.
    """
    if strategy == "strict_pack":
        whole: Counter[str] = Counter()
        for bundle in bundles:
            whole.update(bundle)
        return any(_covers(node, whole) for node in nodes)
    if all(bundle == bundles[0] for bundle in bundles):
        return sum(_times(node, bundles[0], apart=strategy == "strict_spread") for node in nodes) >= len(bundles)
    # The largest first, equal ones beside each other.
    ordered = sorted(bundles, key=lambda bundle: (-sum(bundle.values()), sorted(bundle.items())))
    search = _Search(ordered, [dict(node) for node in nodes], apart=strategy == "strict_spread")
    return search.places(0, 0)


class _Search:
    def __init__(self, bundles: Sequence[Resources], rooms: list[dict[str, float]], *, apart: bool) -> None:
        self._bundles = bundles
        self._rooms = rooms
        self._apart = apart
        self._steps = 0

    def places(self, index: int, first: int) -> bool:
        """Whether the bundles from ``index`` on fit; equal ones go from left to right, from the room ``first`` on."""
        if index == len(self._bundles):
            return True
        self._steps += 1
        if self._steps > _STEPS:
            return True
        bundle = self._bundles[index]
        again = index + 1 < len(self._bundles) and self._bundles[index + 1] == bundle
        for room in range(first, len(self._rooms)):
            if not _covers(self._rooms[room], bundle):
                continue
            before = self._rooms[room]
            self._rooms[room] = {} if self._apart else _without(before, bundle)
            if self.places(index + 1, room if again else 0):
                return True
            self._rooms[room] = before
        return False


def _covers(room: Resources, bundle: Resources) -> bool:
    return all(room.get(name, 0.0) + _SMALL >= amount for name, amount in bundle.items())


def _times(room: Resources, bundle: Resources, *, apart: bool) -> int:
    """How often ``room`` takes ``bundle``; once at most where they are to be apart."""
    times = min(int((room.get(name, 0.0) + _SMALL) / amount) for name, amount in bundle.items())
    return min(times, 1) if apart else times


def _without(room: Resources, bundle: Resources) -> dict[str, float]:
    return {name: amount - bundle.get(name, 0.0) for name, amount in room.items()}


def told_hosts(specs: Sequence[HostSpec], bundles: Sequence[Resources]) -> str:
    """What is asked for: ``2 hosts (learner rank 0, learner rank 1) with 1 processor each``."""
    names = [spec.name for spec in specs]
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    kinds = {told_resources(bundle) for bundle in bundles}
    if len(kinds) == 1:
        each = f"{kinds.pop()}{' each' if len(names) > 1 else ''}"
    else:
        each = ", ".join(told_resources(bundle) for bundle in bundles[:_SHOWN])
    return f"{len(names)} host{'' if len(names) == 1 else 's'} ({shown}) with {each}"


def told_nodes(nodes: Iterable[Node], names: Iterable[str], *, free: bool) -> str:
    """What each of ``nodes`` has of the resources ``names``, and with ``free`` how much of it nobody holds."""
    wanted = sorted(set(names))
    told = []
    for node in nodes:
        total = told_resources({name: node.total.get(name, 0.0) for name in wanted})
        left = told_resources({name: node.free.get(name, 0.0) for name in wanted})
        told.append(f"{node.hostname} ({node.address}) {total}" + (f" of which {left} free" if free else ""))
    if len(told) > _SHOWN:
        told = [*told[:_SHOWN], f"and {len(told) - _SHOWN} more nodes"]
    return "; ".join(told) or "no node"


def told_resources(resources: Resources) -> str:
    """``4 processors and 1 GPU``."""
    return " and ".join(_told(name, amount) for name, amount in sorted(resources.items())) or "no resources"


def _told(name: str, amount: float) -> str:
    one, several = _WORDS.get(name, (name, name))
    return f"{amount:g} {one if amount == 1 else several}"
