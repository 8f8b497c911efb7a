"""The scheduler ``ray``: a run whose processes are actors on the nodes of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from agentrl import Config, ConfigError
from agentrl.reporting.contract import Reporter
from agentrl_ray.cluster import Cluster, joined
from agentrl_ray.hosts import RayHosts, Shared
from agentrl_ray.placement import told_resources
from agentrl_ray.settings import RaySettings

__all__ = ["RayScheduler"]

Summary = TypeVar("Summary")

_STOP_S = 10.0
"""Seconds that hosts have to close at the end of a run, before they are killed."""
_DISABLED = "AGENTRL_DISABLE_PLUGINS"
_RUNS = "run.dir"


class RayScheduler:
    """Runs the process that trains here, and what it starts, its hosts, on a Ray cluster."""

    Settings = RaySettings

    def __init__(self, settings: RaySettings, reporter: Reporter, shared: Mapping[str, Path]) -> None:
        """``shared`` are the paths that hosts need, by configuration key. Raises ``ConfigError`` for ``env``."""
        self.settings = settings
        self.reporter = reporter
        self.shared = shared
        self.hosts: RayHosts | None = None
        """Starts hosts while ``run`` lasts."""
        self._env = _variables(settings.env, os.environ)

    @staticmethod
    def executor(config: Config) -> str | None:
        """What ``rollout.mode=auto`` means under this scheduler; ``None`` for what it means without one.

        Agents run on the cluster where they need processes of their own anyway, or where ``scheduler.workers`` places
        them.
        """
        elsewhere = config.agent.python is not None or config.scheduler.options.get("workers") is not None
        return "ray" if elsewhere else None

    def run(self, train: Callable[[], Summary]) -> Summary:
        """Join or start the cluster, call ``train`` and return its summary; of the run, nothing is left on it.

        Raises ``ConfigError`` or ``PluginError`` where there is no cluster, and what ``train`` raises.
        """
        if self.settings.address is None and "RAY_ADDRESS" not in os.environ:
            self.reporter.note("starting a Ray cluster on this machine for the run")
        with joined(self.settings) as cluster:
            self.reporter.note(_told(cluster))
            self.hosts = RayHosts(
                cluster,
                settings=self.settings,
                shared=Shared(
                    written={key: path for key, path in self.shared.items() if key == _RUNS},
                    read={key: path for key, path in self.shared.items() if key != _RUNS},
                ),
                env=self._env,
                note=self.reporter.note,
                warn=self.reporter.warning,
            )
            try:
                return train()
            finally:
                hosts, self.hosts = self.hosts, None
                hosts.close(_STOP_S)


def _told(cluster: Cluster) -> str:
    nodes = cluster.nodes()
    total = {name: sum(node.total.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    has = told_resources({name: amount for name, amount in total.items() if amount})
    how = "runs on a Ray cluster of its own" if cluster.own else "joined the Ray cluster"
    return f"{how} at {cluster.address}: {len(nodes)} node{'' if len(nodes) == 1 else 's'} with {has}"


def _variables(listed: list[str], environ: Mapping[str, str]) -> dict[str, str]:
    variables = {_DISABLED: environ[_DISABLED]} if _DISABLED in environ else {}
    for entry in listed:
        name, given, value = entry.partition("=")
        if name.split() != [name]:
            raise ConfigError(
                f"scheduler.env holds {entry!r}, which names no variable",
                fix="write NAME or NAME=value",
                key="scheduler.env",
            )
        if not given and name not in environ:
            raise ConfigError(
                f"scheduler.env lists {name!r}, which is not set here",
                fix=f"set {name} before you start, or write {name}=value",
                key="scheduler.env",
            )
        variables[name] = value if given else environ[name]
    return variables
