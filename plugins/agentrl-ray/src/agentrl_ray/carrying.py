"""Worker processes on the nodes of a cluster, as the rollout sees them: it sends and receives text as it does here.

Each node has one host (``agentrl_ray.workers``). Whatever the rollout writes to a process is a question to its host;
what processes say and print is fetched by one question that is always open.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from agentrl import AgentRLError, ConfigError, HostLostError, PluginError, WorkerError
from agentrl_ray.host import RayHost
from agentrl_ray.workers import Event

__all__ = ["NodeCarrier", "Place"]


class Place:
    """A host that runs agents, and the processes on its node."""

    def __init__(self, host: RayHost, slots: int) -> None:
        """``slots`` is how many processes it may run."""
        self.host = host
        self.slots = slots
        self.processes: dict[int, RemoteProcess] = {}

    @property
    def load(self) -> float:
        """The share of its processes that run; more than 1 where some have not been replaced yet."""
        return len(self.processes) / self.slots


class NodeCarrier:
    """Starts worker processes on the least loaded node; see ``agentrl.rollout.subproc.contract.Carrier``."""

    def __init__(self, lost: Callable[[Place, HostLostError], None]) -> None:
        """``lost`` is called when a host has ended, with its error; its processes have ended by then."""
        self.places: list[Place] = []
        self._lost = lost
        self._numbers = itertools.count(1)
        self._pumps: dict[RayHost, asyncio.Task[None]] = {}

    @property
    def slots(self) -> int:
        """How many processes may run in all."""
        return sum(place.slots for place in self.places)

    def add(self, host: RayHost, slots: int) -> None:
        """Start processes on the node of ``host``, too."""
        place = Place(host, slots)
        self.places.append(place)
        self._pumps[host] = asyncio.get_running_loop().create_task(self._pump(place))

    async def launch(self, env: Mapping[str, str]) -> RemoteProcess:
        """Start a process where the smallest share of those that may run does. Raises as ``Carrier.launch`` does."""
        if not self.places:
            raise WorkerError("there is no node left that runs agents")
        place = min(self.places, key=lambda place: place.load)
        number = next(self._numbers)
        process = RemoteProcess(number, place.host)
        place.processes[number] = process
        try:
            process.place = f"{await _asked(place.host, 'launch', number, dict(env))} on {place.host.node}"
        except HostLostError as error:
            place.processes.pop(number, None)
            raise WorkerError(error.message, fix=error.fix) from error
        except (ConfigError, PluginError) as error:
            place.processes.pop(number, None)
            raise type(error)(f"{error.message} (on {place.host.node})", fix=error.fix) from error
        except BaseException:
            process.kill()
            raise
        return process

    def close(self) -> None:
        """Stop listening to the hosts, which are somebody else's to end."""
        for pump in self._pumps.values():
            pump.cancel()

    async def _pump(self, place: Place) -> None:
        try:
            while True:
                for event in await _asked(place.host, "events"):
                    self._take(place, event)
        except AgentRLError as error:
            lost = error if isinstance(error, HostLostError) else HostLostError(error.message, fix=error.fix)
            if place in self.places:
                self.places.remove(place)
            for process in list(place.processes.values()):
                process.lose(lost)
            place.processes.clear()
            self._lost(place, lost)

    def _take(self, place: Place, event: Event) -> None:
        process = place.processes.get(event.number)
        if process is None:
            return
        process.take(event)
        if event.kind == "ended":
            del place.processes[event.number]


async def _asked(host: RayHost, method: str, *arguments: object) -> Any:
    return await asyncio.wrap_future(host.ask(method, *arguments))


class RemoteProcess:
    """A worker process on another node; see ``agentrl.rollout.subproc.contract.StartedProcess``."""

    def __init__(self, number: int, host: RayHost) -> None:
        self.place = f"process {number} on {host.node}"
        self.exit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.returncode = 0
        self.lost: str | None = None
        self._number = number
        self._host = host
        self._channel: _Line | None = None
        self._output: _Line | None = None
        self._early: list[Event] = []

    async def connect(self, channel: asyncio.Protocol, output: asyncio.Protocol) -> None:
        """Pass on what it has said and printed so far, and from now on."""
        self._channel = _Line(channel, self._send)
        self._output = _Line(output, lambda data: None)
        early, self._early = self._early, []
        for event in early:
            self.take(event)

    def take(self, event: Event) -> None:
        """Something has happened to it."""
        if event.kind == "ended":
            self.returncode = event.code
            self._end()
        elif self._channel is None or self._output is None:
            self._early.append(event)
        elif event.kind == "said":
            self._channel.received(event.data)
        elif event.kind == "printed":
            self._output.received(event.data)
        elif event.kind == "hung up":
            self._channel.ended(ConnectionResetError() if event.code else None)
        elif event.kind == "silent":
            self._output.ended(None)

    def lose(self, error: HostLostError) -> None:
        """Its host is gone, and it with it."""
        self.lost = f"is gone: {error.message}"
        for line in (self._channel, self._output):
            if line is not None:
                line.ended(None)
        self._end()

    def kill(self) -> None:
        """Begin to kill it and all that it has started."""
        self._host.ask("kill", self._number)

    async def bury(self) -> None:
        """Its host has done that before it told of the end."""

    def close(self) -> None:
        """Nothing is held of it here."""

    async def diagnose(self, how: str) -> PluginError:
        """What is wrong with the interpreter or the agent's module on its node."""
        message, fix = await _asked(self._host, "diagnose", how)
        return PluginError(f"{message} (on {self._host.node})", fix=fix)

    def _send(self, data: bytes) -> None:
        self._host.ask("send", self._number, data)

    def _end(self) -> None:
        if not self.exit.done():
            self.exit.set_result(None)


class _Line(asyncio.Transport):
    """This end of a connection whose other end is on a node."""

    def __init__(self, protocol: asyncio.Protocol, send: Callable[[bytes], None]) -> None:
        super().__init__()
        self._protocol = protocol
        self._send = send
        self._closing = False
        self._ended = False
        protocol.connection_made(self)

    def received(self, data: bytes) -> None:
        """The other end has sent ``data``."""
        if not self._ended:
            self._protocol.data_received(data)

    def ended(self, error: Exception | None) -> None:
        """The connection is closed, by ``error`` where not all of what was sent has been read."""
        self._closing = True
        if not self._ended:
            self._ended = True
            self._protocol.connection_lost(error)

    def is_closing(self) -> bool:
        """See ``asyncio.Transport``."""
        return self._closing

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """See ``asyncio.Transport``."""
        if not self._closing:
            with contextlib.suppress(AgentRLError):
                self._send(bytes(data))

    def close(self) -> None:
        """See ``asyncio.Transport``."""
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self.ended, None)

    def abort(self) -> None:
        """See ``asyncio.Transport``."""
        self.close()
