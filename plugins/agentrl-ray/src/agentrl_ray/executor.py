"""The executor ``ray``: agents in warm worker processes on the nodes of the scheduler's cluster."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager

from agentrl import (
    AgentLaunch,
    AgentRLError,
    Config,
    ConfigError,
    HostLostError,
    SubprocRunner,
    WorkerError,
    environment_of,
    inspect_agent,
    run_in_thread,
)
from agentrl.hosting.contract import HostSpec
from agentrl.rollout.contract import AgentFacts, AgentRunner, AgentSpec, ExecutorContext
from agentrl_ray.carrying import NodeCarrier, Place
from agentrl_ray.host import RayHost
from agentrl_ray.hosts import RayHosts
from agentrl_ray.placement import Node
from agentrl_ray.settings import WorkerSettings

__all__ = ["RayExecutor"]

_INSPECTION_S = 120.0
_START_S = 120.0
"""Seconds that the host of a node may take to start."""
_LOOK_S = 2.0
"""Seconds between two looks for nodes that have joined."""
_AGAIN_S = 30.0
"""Seconds after which a node on which no host could be started is tried again."""
_STOP_S = 5.0
_AGENT = "agent.name"
"""The key of the path that agents need on their node."""


class RayExecutor:
    """Runs agents in worker processes, on each node of the cluster or on some."""

    runs_on_event_loop = False

    def __init__(self, agent: AgentSpec, config: Config) -> None:
        """Raises ``ConfigError`` for an agent that another process cannot find, and for ``agent.env``."""
        self._agent = agent
        self._config = config
        self._launch = AgentLaunch.of(agent, "another machine")

    async def inspect(self) -> AgentFacts:
        """Load the agent in a process of its own on this machine, where its interpreter is here.

        What is only on the nodes is found there when the run starts. Raises as ``Executor.inspect`` does.
        """
        if self._config.scheduler.options.get("runtime_env") or not self._launch.python.exists():
            return AgentFacts(is_async=True, returns_answer=False)
        return await inspect_agent(self._launch, deadline_s=_INSPECTION_S)

    def running(self, context: ExecutorContext) -> AbstractAsyncContextManager[AgentRunner]:
        """Start a host on each node, and a first worker. See ``Executor.running``.

        Without a scheduler, as in an evaluation of an agent alone, the workers are processes of this machine. Raises
        ``ConfigError`` under a scheduler that has no cluster.
        """
        if context.hosts is None:
            return self._here(context)
        if not isinstance(context.hosts, RayHosts):
            raise ConfigError(
                "rollout.mode=ray runs agents on a Ray cluster, and "
                f"scheduler.type={self._config.scheduler.type} has none",
                fix="set scheduler.type=ray, or rollout.mode=subproc",
                key="rollout.mode.name",
            )
        return self._there(context, context.hosts)

    @contextlib.asynccontextmanager
    async def _here(self, context: ExecutorContext) -> AsyncIterator[AgentRunner]:
        context.warn("agents run on this machine: only a run that a scheduler of Ray starts has a cluster")
        runner = self._runner(context, context.max_workers, None)
        async with runner:
            self._check(runner)
            yield runner

    @contextlib.asynccontextmanager
    async def _there(self, context: ExecutorContext, hosts: RayHosts) -> AsyncIterator[AgentRunner]:
        crew = _Crew(hosts, self._agent, self._launch, context)
        try:
            await crew.assemble()
            runner = self._runner(context, crew.most, crew.carrier)
            async with runner:
                self._check(runner)
                crew.serve(runner)
                runner.warm()
                yield runner
        finally:
            await crew.leave()

    def _runner(self, context: ExecutorContext, max_workers: int | None, carrier: NodeCarrier | None) -> SubprocRunner:
        return SubprocRunner(
            self._launch,
            concurrency=context.concurrency,
            max_workers=max_workers,
            episodes_per_worker=context.episodes_per_worker,
            logs=context.logs,
            open_worker_endpoint=context.open_worker_endpoint,
            warn=context.warn,
            carrier=carrier,
        )

    def _check(self, runner: SubprocRunner) -> None:
        """Raise what ``inspect`` has left to the nodes."""
        if runner.facts.returns_answer and self._config.reward is None:
            raise ConfigError(
                f"agent {self._agent.name!r} returns an answer, and no reward is set to score it",
                fix="set reward= to one of `agentrl list-rewards`, pkg.mod:Obj or file.py:Obj",
            )


class _Crew:
    """The hosts of agents: one on each node that has room, those that join while the run runs among them."""

    def __init__(self, hosts: RayHosts, agent: AgentSpec, launch: AgentLaunch, context: ExecutorContext) -> None:
        self.carrier = NodeCarrier(self._has_lost)
        self._hosts = hosts
        self._settings = hosts.settings.workers or WorkerSettings()
        self._agent = agent
        self._launch = launch
        self._context = context
        self._numbers = itertools.count(1)
        self._runner: SubprocRunner | None = None
        self._watch: asyncio.Task[None] | None = None
        self._again: dict[str, float] = {}
        """By the id of a node on which no host could be started: when to try again."""
        self._warned: set[str] = set()
        self._joining: dict[str, asyncio.Task[None]] = {}
        """By the id of a node: the host that is being started there."""

    @property
    def most(self) -> int:
        """How many processes there may be on all nodes now."""
        return min(self.carrier.slots, self._context.max_workers or self.carrier.slots)

    async def assemble(self) -> None:
        """Start a host on each node that has room; wait for the first one.

        Raises ``ConfigError`` where no node could ever take one, and ``RunError`` where none does in time.
        """
        patience = self._hosts.settings.patience
        room = await self._with_room()
        if not room:
            # Nobody has room now: the group is placed where that is first, or is refused with what there is.
            started = [await run_in_thread(self._start_anywhere, patience)]
        else:
            found = await asyncio.gather(*(run_in_thread(self._start, node) for node in room), return_exceptions=True)
            started = [each for each in found if isinstance(each, RayHost)]
            faults = [each for each in found if isinstance(each, BaseException)]
            for fault in faults:
                if not started or not isinstance(fault, AgentRLError):
                    raise fault
                self._context.warn(f"no agents run on one of the nodes: {fault}")
        for host in started:
            self.carrier.add(host, self._settings.cpus)

    def serve(self, runner: SubprocRunner) -> None:
        """Keep ``runner`` told of how many processes there may be, as nodes come and go."""
        self._runner = runner
        self._watch = asyncio.get_running_loop().create_task(self._look())

    async def leave(self) -> None:
        """Stop every host."""
        for task in (self._watch, *self._joining.values()):
            if task is not None:
                task.cancel()
        self.carrier.close()
        hosts = [place.host for place in self.carrier.places]
        await asyncio.gather(*(run_in_thread(host.stop, _STOP_S) for host in hosts))

    def _has_lost(self, place: Place, error: HostLostError) -> None:
        left = len(self.carrier.places)
        others = f"agents go on on {left} node{'' if left == 1 else 's'}" if left else "agents wait for a node"
        self._context.warn(f"{error.message}; its episodes are run again, and {others}")
        self._resize()

    def _resize(self) -> None:
        if self._runner is not None:
            self._runner.resize(self.most)

    async def _look(self) -> None:
        """Start hosts on nodes that have joined or have room again, until there is none to run agents for too long."""
        alone_since: float | None = None
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self._take_new()
            except AgentRLError as error:
                self._warn_once("", f"looking for nodes that have joined: {error}")
            now = time.monotonic()
            if self.carrier.places:
                alone_since = None
            elif alone_since is None:
                alone_since = now
            elif now - alone_since > self._hosts.settings.patience and self._runner is not None:
                patience = self._hosts.settings.patience
                self._runner.give_up(
                    WorkerError(f"no node of the cluster has run agents for {patience:g} s", fix="see `ray status`")
                )
                return

    async def _take_new(self) -> None:
        """Start a host on each node that has none and has room, without waiting for it."""
        for node in await self._with_room():
            self._joining[node.id] = asyncio.get_running_loop().create_task(self._join(node))

    async def _join(self, node: Node) -> None:
        try:
            host = await run_in_thread(self._start, node)
        except AgentRLError as error:
            self._again[node.id] = time.monotonic() + _AGAIN_S
            self._warn_once(node.id, f"no agents run on {node.words}: {error}")
        else:
            self.carrier.add(host, self._settings.cpus)
            self._resize()
            if self._runner is not None:
                self._runner.warm()
            self._context.warn(f"agents run on {node.words}, too")
        finally:
            del self._joining[node.id]

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            self._context.warn(text)

    async def _with_room(self) -> list[Node]:
        """Nodes that have no host of ours and room for one, the emptiest first, no more than there may be."""
        taken = {place.host.node_id for place in self.carrier.places} | self._joining.keys()
        needed = self._resources
        now = time.monotonic()
        nodes = [
            node
            for node in await run_in_thread(self._hosts.cluster.nodes)
            if node.id not in taken
            and now >= self._again.get(node.id, 0.0)
            and all(node.free.get(name, 0.0) >= amount for name, amount in needed.items())
        ]
        nodes.sort(key=lambda node: -node.free.get("CPU", 0.0))
        most = self._settings.nodes
        return nodes if most is None else nodes[: max(0, most - len(taken))]

    @property
    def _resources(self) -> dict[str, float]:
        return {"CPU": float(self._settings.cpus), **self._settings.resources}

    def _start(self, node: Node) -> RayHost:
        return self._hosts.start_on(
            node, self._spec(), patience=_START_S, resources=self._settings.resources, read=(_AGENT,)
        )

    def _start_anywhere(self, patience: float) -> RayHost:
        return self._hosts.start_somewhere(
            self._spec(), patience=patience, resources=self._settings.resources, read=(_AGENT,)
        )

    def _spec(self) -> HostSpec:
        agent, launch = self._agent, self._launch
        environment = None if agent.python is None else environment_of(agent.python)
        return HostSpec(
            name=f"agents {next(self._numbers)}",
            target="agentrl_ray.workers:AgentWorkers",
            arguments={
                "reference": agent.reference,
                "python": None if agent.python is None else str(launch.python),
                "environment": None if environment is None else environment.name,
                "env": _with_values(agent.env, os.environ),
                "disabled": list(agent.disabled),
            },
            cpus=float(self._settings.cpus),
        )


def _with_values(listed: tuple[str, ...], environ: Mapping[str, str]) -> list[str]:
    """``agent.env`` as ``NAME=value`` throughout: the values are this machine's."""
    return [entry if "=" in entry else f"{entry}={environ[entry]}" for entry in listed]
