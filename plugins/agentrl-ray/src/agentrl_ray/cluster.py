"""The cluster of a run: joined, or started here and ended with the run; and what its nodes have."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.state import available_resources_per_node
from ray.exceptions import RayError

from agentrl import ConfigError, PluginError, RunError
from agentrl_ray.placement import Node
from agentrl_ray.settings import RaySettings

__all__ = ["Cluster", "joined"]

_log = logging.getLogger(__name__)
_LOOPBACK = "127.0.0.1"
_LISTENS_S = 5.0
"""Seconds that the head may take to accept a connection."""

_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0, Ray's processes listen at 127.0.0.1 alone, as they do on macOS anyway."""

_QUIET = {
    # Nothing of a run is sent anywhere.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without an agent for metrics there is nobody who would read them.
    "RAY_enable_metrics_collection": "0",
    # Hosts without a GPU see none, since we say so.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_ADDRESS = "RAY_ADDRESS"
_TOKENS = "RAY_AUTH_MODE"
"""Ray sets it where it starts a cluster, which is then reached with a token alone."""


class Cluster:
    """A cluster that this process is connected to."""

    def __init__(self, address: str, *, own: bool) -> None:
        self.address = address
        """``host:port`` of its head."""
        self.own = own
        """Whether it was started for the run: no other machine is in it."""

    @property
    def here(self) -> str:
        """The address at which other nodes reach this one."""
        return _LOOPBACK if self.own else str(ray.util.get_node_ip_address())

    def is_listening(self) -> bool:
        """Whether anybody listens at its address. Asks nothing of Ray, which would wait for its head."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _LISTENS_S).close()
        except OSError:
            return False
        return True

    def nodes(self) -> list[Node]:
        """The nodes that are alive. Raises ``RunError`` where the head does not answer."""
        try:
            free = available_resources_per_node()
            return [
                Node(
                    id=each["NodeID"],
                    hostname=each["NodeManagerHostname"],
                    address=each["NodeManagerAddress"],
                    total=each["Resources"],
                    free=free.get(each["NodeID"], {}),
                )
                for each in ray.nodes()
                if each["Alive"]
            ]
        except (RayError, RuntimeError, TimeoutError) as error:
            raise RunError(f"the Ray cluster at {self.address} does not answer: {error}") from error


@contextlib.contextmanager
def joined(settings: RaySettings) -> Iterator[Cluster]:
    """Connect to the cluster that ``settings`` names, or start one here; at the end, leave it or end it.

    Where this process is connected already, that is the cluster. Raises ``ConfigError`` where there is no cluster at
    the address, and for settings that would have no effect, and ``PluginError`` where one cannot be started.
    """
    if ray.is_initialized():
        # Whoever drives this process, such as a test or a notebook, has connected: we do not disconnect it.
        connected = ray.get_runtime_context().gcs_address
        _check_connected(settings, connected)
        yield Cluster(connected, own=False)
        return
    address = settings.address or os.environ.get(_ADDRESS)
    if address is not None and settings.cpus is not None:
        raise _without_effect("cpus", f"{_ADDRESS} names the cluster at {address}")
    with _quiet(), contextlib.ExitStack() as stack:
        cluster = _started(settings, stack) if address is None else _connected(address, settings)
        try:
            yield cluster
        finally:
            ray.shutdown()


def _check_connected(settings: RaySettings, connected: str) -> None:
    """Raise ``ConfigError`` for what a process that is ``connected`` already cannot have."""
    why = f"this process is connected to the Ray cluster at {connected} already"
    if settings.cpus is not None:
        raise _without_effect("cpus", why)
    if settings.runtime_env:
        raise _without_effect("runtime_env", why, "pass it to ray.init, or leave connecting to the run")
    if settings.address not in (None, "auto") and not _are_same(str(settings.address), connected):
        raise _without_effect("address", why)


def _without_effect(key: str, why: str, fix: str = "leave it out") -> ConfigError:
    return ConfigError(f"scheduler.{key} would have no effect: {why}", fix=fix, key=f"scheduler.{key}")


def _are_same(one: str, other: str) -> bool:
    """Whether two texts ``host:port`` may be of one head: a loopback address is of whichever machine it is used on."""
    hosts, ports = zip(*(each.rpartition(":")[::2] for each in (one, other)), strict=True)
    found = {host: host for host in hosts}
    for host in hosts:
        with contextlib.suppress(OSError):
            found[host] = socket.gethostbyname(host)
    return ports[0] == ports[1] and (
        len({*found.values()}) == 1 or any(address.startswith("127.") for address in found.values())
    )


def _connected(address: str, settings: RaySettings) -> Cluster:
    try:
        info: Any = ray.init(address=address, runtime_env=settings.runtime_env or None, **_ours())
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError) as error:
        ray.shutdown()
        where = "this machine belongs to none" if address == "auto" else f"there is none at {address}"
        raise ConfigError(
            f"scheduler.address={address}: the Ray cluster cannot be reached, {where}: {_first_line(error)}",
            fix="start one with `ray start --head`, join this machine with `ray start --address=HOST:PORT`, or leave "
            "scheduler.address out to have one started here; one that asks for a token needs RAY_AUTH_MODE=token and "
            "the token on every machine",
            key="scheduler.address",
        ) from error
    return Cluster(info.address_info["gcs_address"], own=False)


def _started(settings: RaySettings, stack: contextlib.ExitStack) -> Cluster:
    stack.enter_context(_on_loopback())
    # A folder of its own, since Ray's own would lead others who connect to "auto" to this cluster.
    folder = Path(tempfile.mkdtemp(prefix="agentrl-ray-"))
    try:
        info: Any = ray.init(
            address="local",
            num_cpus=settings.cpus,
            include_dashboard=False,
            runtime_env=settings.runtime_env or None,
            _temp_dir=str(folder),
            **_ours(),
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError, RayError) as error:
        ray.shutdown()
        raise PluginError(
            f"Ray could not be started here: {_first_line(error)}", fix=f"its logs are in {folder}/session_latest/logs"
        ) from error
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return Cluster(info.address_info["gcs_address"], own=True)


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Within it, a cluster that is started listens at 127.0.0.1 alone."""
    before = os.environ.get(_LOOPBACK_ONLY), ray_constants.ENABLE_RAY_CLUSTER
    # The variable is for processes that are started; in this one it was read when Ray was imported.
    os.environ[_LOOPBACK_ONLY], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[1]
        if before[0] is None:
            del os.environ[_LOOPBACK_ONLY]
        else:
            os.environ[_LOOPBACK_ONLY] = before[0]


def _ours() -> dict[str, Any]:
    """What is the same wherever the cluster is."""
    return {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray's reports switched off, what it would print left to its own logs, and our handlers of signals kept."""
    before = {name: os.environ.get(name) for name in (*_QUIET, _TOKENS)}
    os.environ.update({name: value for name, value in _QUIET.items() if before[name] is None})
    log, level = logging.getLogger("ray"), logging.getLogger("ray").level
    log.setLevel(logging.CRITICAL)
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if is_main else None
    printed = ray_worker.print_to_stdstream
    # It prints to our standard output what it says of processes that end, which messages of ours tell.
    ray_worker.print_to_stdstream = lambda data, **_: _log.debug("%s", data)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\b.*")
            yield
    finally:
        ray_worker.print_to_stdstream = printed
        log.setLevel(level)
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
