"""The settings of the scheduler ``ray``: the keys beside its type in a configuration."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from agentrl import Settings

__all__ = ["RaySettings", "WorkerSettings"]

_CLIENT = "ray://"


class WorkerSettings(Settings):
    """The hosts that run agents, one on each node."""

    cpus: int = Field(1, ge=1)
    """Processors that are reserved for agents on each node, and the most processes that run agents there.
    `rollout.max_workers` bounds those of all nodes together."""
    nodes: int | None = Field(None, ge=1)
    """On how many nodes agents run at most; null for every node that has room, those that join later among them."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Further resources of Ray's that each such host takes, such as `{agents: 1}`, so that agents run only on nodes
    that were started with them (`ray start --resources='{"agents": 1}'`)."""


class RaySettings(Settings):
    """The keys beside ``scheduler.type: ray``."""

    address: str | None = None
    """The cluster: `auto` for the one that this machine belongs to, or `host:port` of its head. Null is the cluster
    that the variable `RAY_ADDRESS` names, as in a job of `ray job submit`, else one that is started here for the
    run."""
    cpus: int | None = Field(None, ge=1)
    """How many processors a cluster that is started here has; null for those of this machine. It cannot be set beside
    `address`."""
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack"
    """How hosts that are started together lie: on few nodes or on many, where that is possible, or strictly."""
    patience: float = Field(120.0, gt=0)
    """Seconds that hosts may wait for room in the cluster."""
    autoscaling: bool = False
    """Whether the cluster may get nodes that it does not have yet: what fits no node of today is waited for."""
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    """Ray's runtime environment of the hosts, such as `{pip: [my-agents==1.0], working_dir: .}`."""
    env: list[str] = Field(default_factory=list)
    """Environment variables that hosts get beside those of their node: `NAME` passes this process's, `NAME=value` sets
    one."""
    workers: WorkerSettings | None = None
    """The hosts that run agents in `rollout.mode=ray`. Where it is set, `rollout.mode=auto` means `ray`."""

    @field_validator("address")
    @classmethod
    def _is_reached_directly(cls, address: str | None) -> str | None:
        if address is not None and address.startswith(_CLIENT):
            raise ValueError(
                f"{address} is an address of Ray Client, which hands nothing over to the process that trains: start "
                "the run on a machine of the cluster with address: auto, or there by `ray job submit`"
            )
        if address is not None and address not in ("auto", "local") and ":" not in address:
            raise ValueError(f"{address!r} is no address of a cluster: write auto, or host:port of its head")
        if address == "local":
            raise ValueError("a cluster is started here where address is null: leave it out")
        return address

    @model_validator(mode="after")
    def _counts_processors_of_its_own(self) -> Self:
        if self.address is not None and self.cpus is not None:
            raise ValueError(
                f"cpus: {self.cpus} is of a cluster that is started for the run, and address: {self.address} is one "
                "that is there: leave one of them out"
            )
        return self

    @field_validator("runtime_env")
    @classmethod
    def _leaves_variables_to_env(cls, runtime_env: dict[str, Any]) -> dict[str, Any]:
        if "env_vars" in runtime_env:
            raise ValueError("variables of hosts are set at scheduler.env: move those of env_vars there")
        return runtime_env
