"""Hosts on the nodes of a cluster: placed together in a placement group, made, and gone at the end."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from agentrl import ConfigError, PluginError, RunError
from agentrl.hosting.contract import HostSpec
from agentrl_ray.actor import HostActor, core_version
from agentrl_ray.cluster import Cluster
from agentrl_ray.host import RayHost
from agentrl_ray.placement import Node, Resources, bundle_of, fits, told_hosts, told_nodes
from agentrl_ray.settings import RaySettings
from agentrl_ray.sharing import marking

__all__ = ["RayHosts", "Shared"]

_POLL_S = 0.5
"""Seconds between two looks at what is waited for."""
_TOLD_EVERY_S = 10.0
"""Seconds between two lines about what is waited for."""
_CONTROL_S = 30.0
"""Seconds that a host may take for a question of the scheduler's own, such as whether it sees a folder."""
_LOGS_S = 1.0
"""Seconds between two looks at what hosts have printed."""
_HEAD_S = 5.0
"""Seconds between two looks whether the head is there."""
_HEADLESS = 2
"""Looks in a row at which it is not there that are told."""
_AT_ONCE = 10_000
"""Questions that a host answers beside each other."""
_NODE_LABEL = "ray.io/node-id"
_ANSWERS = 4
"""Threads that read answers."""


@dataclass(frozen=True, slots=True)
class Shared:
    """The paths of a run that hosts need, by configuration key."""

    written: Mapping[str, Path]
    """Folders that must be the same on every node."""
    read: Mapping[str, Path]
    """What must be there with the same content."""


class RayHosts:
    """Starts hosts on the nodes of a cluster: ``agentrl.hosting.contract.Hosts``. Its methods are for any thread."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        settings: RaySettings,
        shared: Shared,
        env: Mapping[str, str],
        note: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        """``env`` are variables of all hosts; ``note`` and ``warn`` show a line to the user, from any thread."""
        self.cluster = cluster
        self.address = cluster.here
        self.elsewhere = not cluster.own
        self.settings = settings
        self._shared = shared
        self._env = env
        self.note = note
        self._warn = warn
        self._lock = threading.Lock()
        self._hosts: list[RayHost] = []
        self._groups: list[PlacementGroup] = []
        self._proven: set[tuple[str, tuple[str, ...]]] = set()
        """Nodes that have seen the paths of these keys."""
        self._names: set[str] = set()
        self._closed = threading.Event()
        self._answers = ThreadPoolExecutor(_ANSWERS, thread_name_prefix="agentrl-ray-answers")
        threading.Thread(target=self._bring_logs, name="agentrl-ray-logs", daemon=True).start()
        threading.Thread(target=self._watch_head, name="agentrl-ray-head", daemon=True).start()

    def start(
        self,
        specs: Sequence[HostSpec],
        *,
        patience: float,
        together: bool = True,
        given_up: threading.Event | None = None,
    ) -> Sequence[RayHost]:
        """Start a host for each of ``specs``; see ``Hosts.start``.

        They wait for room no longer than ``patience`` and the setting of that name. Raises also ``ConfigError`` where
        their node does not see a path of the run, and ``PluginError`` where it has another version of agentrl.
        """
        if together:
            return self._start(specs, patience, given_up=given_up)
        until = time.monotonic() + patience
        hosts: list[RayHost] = []
        try:
            for spec in specs:
                hosts += self._start([spec], max(0.0, until - time.monotonic()), given_up=given_up)
        except BaseException:
            for host in hosts:
                host.stop(0.0)
            raise
        return hosts

    def start_on(
        self, node: Node, spec: HostSpec, *, patience: float, resources: Resources, read: Sequence[str]
    ) -> RayHost:
        """Start a host on ``node``, which takes ``resources`` beside those of ``spec`` and needs the paths ``read``."""
        return self._start([spec], patience, node=node, resources=resources, keys=tuple(read))[0]

    def start_somewhere(self, spec: HostSpec, *, patience: float, resources: Resources, read: Sequence[str]) -> RayHost:
        """As ``start_on``, on whichever node has room first."""
        return self._start([spec], patience, resources=resources, keys=tuple(read))[0]

    def close(self, patience: float) -> None:
        """Stop every host, each within ``patience`` seconds, and free what was reserved. Safe to call twice."""
        self._closed.set()
        with self._lock:
            hosts, groups = list(self._hosts), list(self._groups)
        if hosts:
            with ThreadPoolExecutor(len(hosts), thread_name_prefix="agentrl-ray-stop") as threads:
                list(threads.map(lambda host: host.stop(patience), hosts))
        for group in groups:
            self._free(group)
        self._answers.shutdown(wait=False, cancel_futures=True)

    def _start(
        self,
        specs: Sequence[HostSpec],
        patience: float,
        *,
        node: Node | None = None,
        resources: Resources = {},  # noqa: B006 - Nobody writes to it.
        keys: tuple[str, ...] | None = None,
        given_up: threading.Event | None = None,
    ) -> list[RayHost]:
        began = time.monotonic()
        is_over = _any_of(self._closed, given_up)
        bundles = [{**bundle_of(spec), **resources} for spec in specs]
        self._claim([spec.name for spec in specs])
        group: PlacementGroup | None = None
        hosts: list[RayHost] = []
        try:
            group = self._placed(specs, bundles, min(patience, self.settings.patience), node, is_over)
            for index, (spec, where) in enumerate(zip(specs, self._nodes_of(group), strict=True)):
                hosts.append(self._made(spec, where, group, index))
            with self._lock:
                self._hosts += hosts
            until = began + patience
            self._greet(hosts, until, patience, is_over)
            self._prove(hosts, keys, is_over)
            self._make(hosts, specs, until, patience, is_over)
        except BaseException:
            for host in hosts:
                host.stop(0.0)
            if group is not None:
                self._free(group)
            self._release(specs)
            raise
        self.note("; ".join(f"{host.name} is on {host.node}" for host in hosts))
        return hosts

    def _claim(self, names: Sequence[str]) -> None:
        with self._lock:
            if self._closed.is_set():
                raise RunError("the run is over: no host is started any more")
            if taken := sorted(self._names.intersection(names)) or sorted({n for n in names if names.count(n) > 1}):
                raise ValueError(f"hosts of a run do not share a name: {', '.join(taken)}")
            self._names.update(names)

    def _release(self, specs: Sequence[HostSpec]) -> None:
        with self._lock:
            self._names.difference_update(spec.name for spec in specs)

    def forget(self, host: RayHost) -> None:
        """A host is gone: another one may have its name, and once all of its group are gone, their room."""
        with self._lock:
            if host not in self._hosts:
                return
            self._hosts.remove(host)
            self._names.discard(host.name)
            alone = all(each.group is not host.group for each in self._hosts)
        if alone:
            self._free(host.group)

    def _placed(
        self,
        specs: Sequence[HostSpec],
        bundles: list[dict[str, float]],
        patience: float,
        node: Node | None,
        is_over: Callable[[], bool],
    ) -> PlacementGroup:
        names = {name for bundle in bundles for name in bundle}
        asked = told_hosts(specs, bundles)
        if node is None:
            self._check_room(asked, bundles, names)
        group: PlacementGroup = placement_group(
            bundles,
            strategy=self.settings.placement.upper(),
            name=f"agentrl {os.getpid()} {specs[0].name}",
            bundle_label_selector=None if node is None else [{_NODE_LABEL: node.id}] * len(bundles),
        )
        with self._lock:
            self._groups.append(group)
        where = "the cluster" if node is None else node.words
        deadline, told = time.monotonic() + patience, time.monotonic() + min(2.0, patience / 2)
        while not self._is_ready(group):
            now = time.monotonic()
            if is_over():
                raise RunError(f"the run ended while {asked} waited for room")
            if node is not None and node.id not in {each.id for each in self.cluster.nodes()}:
                raise RunError(f"{asked} cannot be on {node.words}, which is gone")
            if now >= deadline:
                raise RunError(
                    f"waited {patience:g} s for room for {asked} on {where}, which has {self._told(names, node)}",
                    fix="free some of it (`ray status` says who holds it), ask for less, or raise scheduler.patience",
                )
            if now >= told:
                told = now + _TOLD_EVERY_S
                self.note(f"waiting for room for {asked}: {where} has {self._told(names, node)}")
        return group

    def _is_ready(self, group: PlacementGroup) -> bool:
        try:
            return bool(group.wait(_POLL_S))
        except RayError as error:
            raise RunError(f"the Ray cluster at {self.cluster.address} does not place hosts: {error}") from error

    def _check_room(self, asked: str, bundles: list[dict[str, float]], names: set[str]) -> None:
        """Raise ``ConfigError`` where the nodes that there are could never take the hosts."""
        nodes = self.cluster.nodes()
        if self.settings.autoscaling or fits(bundles, [node.total for node in nodes], self.settings.placement):
            return
        how = (
            ""
            if self.settings.placement in ("pack", "spread")
            else f", placed by scheduler.placement={self.settings.placement}"
        )
        raise ConfigError(
            f"{asked}{how} do not fit the Ray cluster, which has {told_nodes(nodes, names, free=False)}",
            fix="ask for less (training.processes, scheduler.workers), add nodes, choose another scheduler.placement, "
            "or set scheduler.autoscaling=true for a cluster that gets nodes when they are asked for",
            key="scheduler",
        )

    def _told(self, names: set[str], node: Node | None) -> str:
        nodes = [each for each in self.cluster.nodes() if node is None or each.id == node.id]
        return told_nodes(nodes, names, free=True)

    def _nodes_of(self, group: PlacementGroup) -> list[Node]:
        known = {node.id: node for node in self.cluster.nodes()}
        placed = placement_group_table(group)["bundles_to_node_id"]
        lost = Node("", "a node that is gone", "", {}, {})
        return [known.get(placed[index], lost) for index in sorted(placed)]

    def _made(self, spec: HostSpec, node: Node, group: PlacementGroup, index: int) -> RayHost:
        # Ray hides GPUs from an actor that has none only where it is told to.
        hidden = {} if spec.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        actor: Any = (
            ray.remote(HostActor)
            .options(
                num_cpus=spec.cpus,
                num_gpus=spec.gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=_AT_ONCE,
                runtime_env={"env_vars": {**hidden, **self._env, **spec.env}},
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, index),
            )
            .remote()
        )
        return RayHost(spec.name, node, actor, group, spec.log, self._answers, self.forget)

    def _greet(self, hosts: Sequence[RayHost], until: float, patience: float, is_over: Callable[[], bool]) -> None:
        folder = os.getcwd()
        asked = [host.actor.greet.remote(host.name, folder) for host in hosts]
        for host, ref in zip(hosts, asked, strict=True):
            host.greeted(self._got(ref, host, until, patience, "to start", is_over))
        here = _Versions.here()
        for host in hosts:
            here.check(host)

    def _prove(self, hosts: Sequence[RayHost], keys: tuple[str, ...] | None, is_over: Callable[[], bool]) -> None:
        """Have a host on each node that is new say whether it sees the paths of the run."""
        paths = _Paths.of(self._shared, keys)
        new = {host.node_id: host for host in hosts if (host.node_id, paths.keys) not in self._proven}
        if not new or not paths.keys:
            return
        with marking(paths.written, paths.read) as marks:
            asked = [(host, host.actor.faults.remote(marks)) for host in new.values()]
            until = time.monotonic() + _CONTROL_S
            for host, ref in asked:
                found = self._got(ref, host, until, _CONTROL_S, "to look at the folders of the run", is_over)
                for key, path, wrong in found:
                    raise _unseen(host, key, path, wrong)
        self._proven |= {(node, paths.keys) for node in new}

    def _make(
        self,
        hosts: Sequence[RayHost],
        specs: Sequence[HostSpec],
        until: float,
        patience: float,
        is_over: Callable[[], bool],
    ) -> None:
        pickled = [pickle.dumps(dict(spec.arguments), protocol=5) for spec in specs]
        asked = [
            host.actor.make.remote(spec.target, arguments)
            for host, spec, arguments in zip(hosts, specs, pickled, strict=True)
        ]
        for host, spec, ref in zip(hosts, specs, asked, strict=True):
            answer = self._got(ref, host, until, patience, f"to make its {spec.target.rpartition(':')[2]}", is_over)
            host.opened(answer)

    def _got(
        self, ref: Any, host: RayHost, until: float, patience: float, what: str, is_over: Callable[[], bool]
    ) -> Any:
        """What ``ref`` holds; it is told what is waited for, and raised as the contract of hosts has it."""
        told = time.monotonic() + _TOLD_EVERY_S
        while True:
            left = until - time.monotonic()
            try:
                return ray.get(ref, timeout=max(0.0, min(left, _POLL_S)))
            except GetTimeoutError:
                if is_over():
                    raise RunError(f"the run ended while it waited for {host.name} {what}") from None
                if left <= 0:
                    raise RunError(
                        f"waited {patience:g} s for {host.name} on {host.node} {what}{host.last_words()}",
                        fix="see what the node is busy with, or raise the time that this may take",
                    ) from None
                if time.monotonic() >= told:
                    told = time.monotonic() + _TOLD_EVERY_S
                    self.note(f"waiting for {host.name} on {host.node} {what}")
            except RayError as error:
                raise host.error_of(error) from error

    def _free(self, group: PlacementGroup) -> None:
        with self._lock:
            if group not in self._groups:
                return
            self._groups.remove(group)
        with contextlib.suppress(RayError, RuntimeError):
            remove_placement_group(group)

    def _bring_logs(self) -> None:
        while not self._closed.wait(_LOGS_S):
            with self._lock:
                hosts = list(self._hosts)
            for host in hosts:
                host.bring_log()
                if host.log is not None and host.log.fault is not None:
                    self._warn(host.log.fault)
                    host.log.path, host.log.fault = None, None

    def _watch_head(self) -> None:
        """Tell that the head is gone: Ray waits a minute for it, and then ends this process without a word of ours."""
        missed = 0
        while not self._closed.wait(_HEAD_S):
            missed = 0 if self.cluster.is_listening() else missed + 1
            if missed == _HEADLESS:
                self._warn(
                    f"the head of the Ray cluster at {self.cluster.address} does not answer: unless it comes back, Ray "
                    "ends this process within a minute of its end (see why it has ended, and go on with agentrl train "
                    "--resume on another cluster)"
                )


def _any_of(*events: threading.Event | None) -> Callable[[], bool]:
    return lambda: any(event is not None and event.is_set() for event in events)


def _unseen(host: RayHost, key: str, path: str, wrong: str) -> ConfigError:
    return ConfigError(
        f"{key}: {host.name} on {host.node} does not see {path} of this machine: it {wrong} there",
        fix=f"put it on a folder that both machines mount at the same path, such as one of NFS, and set {key} to it"
        + ("" if key == "run.dir" else "; a copy of the same content at that path does as well"),
        key=key,
    )


class _Paths:
    """Of the paths that are shared, those that some hosts need."""

    def __init__(self, written: Mapping[str, Path], read: Mapping[str, Path]) -> None:
        self.written = written
        self.read = read
        self.keys = (*written, *read)

    @classmethod
    def of(cls, shared: Shared, keys: tuple[str, ...] | None) -> _Paths:
        if keys is None:
            return cls(shared.written, shared.read)
        return cls({}, {key: path for key, path in shared.read.items() if key in keys})


@dataclass(frozen=True, slots=True)
class _Versions:
    core: str | None

    @classmethod
    def here(cls) -> _Versions:
        return cls(core_version())

    def check(self, host: RayHost) -> None:
        """Raise ``PluginError`` where ``host`` could not read what is pickled here."""
        greeting = host.greeting
        assert greeting is not None
        if greeting.core != self.core:
            raise PluginError(
                f"{host.node} has agentrl-core {greeting.core}, and this machine has {self.core}",
                fix=f"pip install agentrl-core=={self.core} there, or name it in scheduler.runtime_env",
            )
