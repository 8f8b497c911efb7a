"""The contracts of schedulers and of hosts: processes, here or on other machines, each of which holds one object and
calls its methods.

A scheduler starts them: the ranks of a learner, the servers of an engine, the workers that run agents. Whoever asks a
host knows neither where it is nor what carries the question there.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from agentrl.errors import AgentRLError, RunError, one_line, shortened

__all__ = ["Host", "HostSpec", "Hosts", "PlacingScheduler", "Scheduler", "error_of_host"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What a host is to be."""

    name: str
    """What it is called in messages and logs, such as ``learner rank 1``; no two hosts of a run share a name."""
    target: str
    """``package.module:Class``: what is called with ``arguments`` in the host, and makes the object that it holds."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """By keyword; plain values, arrays and dataclasses of ours, which are pickled on their way."""
    cpus: float = 1.0
    """How many processors it uses, for whoever places it."""
    gpus: float = 0.0
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that it has beside those of this process."""
    log: Path | None = None
    """The file that what it prints is added to, which is made with its folder; on another machine it is there only
    where the folder is shared. Without one, what it has printed last is told in errors, and kept nowhere."""


class Host(Protocol):
    """A running host. Its methods may be called from any thread."""

    @property
    def name(self) -> str: ...

    @property
    def node(self) -> str:
        """The machine that it runs on, in words."""
        ...

    @property
    def address(self) -> str:
        """The name or IP address at which other hosts reach that machine."""
        ...

    def ask(self, method: str, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have ``method`` of the object called, and return the future of what it returns.

        A plain method is called when those asked for before it have returned, so that the order of questions is the
        order of calls; coroutine methods run beside each other on the host's event loop. The future raises what the
        method raises, as an ``AgentRLError`` of the same class where it is one and else as a ``RunError`` that quotes
        it, and ``HostLostError`` where the host ends before it has answered. Cancelling it cancels a coroutine; a plain
        method goes on.
        """
        ...

    def stop(self, patience: float) -> None:
        """End the host: its object's ``close``, where it has one, gets ``patience`` seconds, and then it is killed.

        Returns once its process is gone. Safe to call twice.
        """
        ...


class Hosts(Protocol):
    """Starts hosts."""

    @property
    def address(self) -> str:
        """The name or IP address at which hosts reach this process: ``127.0.0.1`` where none is elsewhere."""
        ...

    @property
    def elsewhere(self) -> bool:
        """Whether hosts may be on other machines, which reach this one over the network and share only some folders."""
        ...

    def start(
        self,
        specs: Sequence[HostSpec],
        *,
        patience: float,
        together: bool = True,
        given_up: threading.Event | None = None,
    ) -> Sequence[Host]:
        """Start a host for each of ``specs`` and wait until their objects are made.

        With ``together`` either all are placed or none. Raises ``ConfigError`` where there is no room for them at all,
        ``RunError`` where they are not there after ``patience`` seconds, with what they wait for, or within a second or
        so of ``given_up`` being set, and what the making of an object raises; no host is left then.
        """
        ...


class Scheduler(Protocol):
    """Says where a run takes place. A plugin registers a class or a function that makes it, in the entry-point group
    ``agentrl.schedulers``.

    It is given its own keys and, of the following, what its signature takes: ``config``; ``reporter``, to say what is
    waited for; and ``shared``, the paths by configuration key that the run's processes need wherever they are, of which
    ``run.dir`` is written to. One under which ``rollout.mode=auto`` may mean another executor has a static method
    ``executor(config)``, which returns its name or ``None``.
    """

    def run(self, train: Callable[[], Result]) -> Result:
        """Call ``train`` once, where the run is to take place, and return what it returns; what it raises passes."""
        ...


class PlacingScheduler(Scheduler, Protocol):
    """A scheduler that starts processes for the run, such as those of ``training.processes``."""

    @property
    def hosts(self) -> Hosts | None:
        """Starts them while ``run`` lasts; ``None`` before and after it, and where the run needs no processes.

        That a scheduler starts processes at all is told by its having this attribute.
        """
        ...


def error_of_host(error: BaseException, name: str, method: str) -> AgentRLError:
    """What ``Host.ask`` raises for ``error``, which ``method`` of the object of the host ``name`` has raised there.

    That is ``error`` itself where it is an ``AgentRLError`` that can be pickled, else a ``RunError`` that quotes it.
    """
    if isinstance(error, AgentRLError):
        error.__traceback__ = error.__cause__ = error.__context__ = None
        try:
            if type(pickle.loads(pickle.dumps(error))) is type(error):  # noqa: S301 - Pickled here.
                return error
        except Exception:
            return RunError(error.message, fix=error.fix, fingerprint=error.fingerprint)
    told = shortened(one_line(error), 1000)
    return RunError(f"{name} could not {method}: {type(error).__name__}: {told}")
