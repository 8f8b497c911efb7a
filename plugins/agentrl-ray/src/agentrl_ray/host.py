"""A host as a Ray actor: asked over Ray's channel, and named with its node and last words where it is lost."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError, RuntimeEnvSetupError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agentrl import AgentRLError, HostLostError, PluginError, RunError
from agentrl_ray.actor import Answer, Greeting, Question, printed_since
from agentrl_ray.logs import HostLog
from agentrl_ray.placement import Node

__all__ = ["RayHost"]

_GONE_S = 15.0
"""Seconds that a killed process may take to be gone."""
_SPARE_S = 1.0
"""Seconds beside its patience in which a host that closes answers."""
_LOGGED_S = 10.0
"""Seconds in which what a host has printed is told."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class RayHost:
    """An actor that holds an object: ``agentrl.hosting.contract.Host``."""

    def __init__(
        self,
        name: str,
        node: Node,
        actor: Any,
        group: PlacementGroup,
        log: Path | None,
        answers: ThreadPoolExecutor,
        forget: Callable[[RayHost], None],
    ) -> None:
        """``forget`` is called once it is gone."""
        self.name = name
        self.node = node.words
        self.node_id = node.id
        self.address = node.address
        self.actor = actor
        self.group = group
        self.greeting: Greeting | None = None
        self.log: HostLog | None = None
        self.gone: Future[HostLostError] = Future()
        """Holds how it ended once it has ended."""
        self._path = log
        self._answers = answers
        self._forget = forget
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._asked: dict[int, Future[Any]] = {}
        self._lost: HostLostError | None = None
        self._stopping = False
        self._life = actor.live.remote().future()
        self._life.add_done_callback(lambda life: self._submit(self._ended, life))

    def ask(self, method: str, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See ``Host.ask``. Raises what pickling an argument raises."""
        payload = pickle.dumps((args, kwargs), protocol=5)
        asked: Future[Any] = Future()
        with self._lock:
            if self._lost is not None:
                asked.set_exception(self._lost)
                return asked
            number = next(self._numbers)
            self._asked[number] = asked
            # Under the lock, so that questions leave in the order of their numbers.
            ref = self.actor.ask.remote(Question(number, method, payload))
        ref.future().add_done_callback(lambda answer: self._submit(self._take, number, answer))
        asked.add_done_callback(lambda done: self._cancel(number) if done.cancelled() else None)
        return asked

    def stop(self, patience: float) -> None:
        """See ``Host.stop``."""
        self._stopping = True
        if patience > 0 and not self.gone.done():
            with contextlib.suppress(RayError):
                ray.get(self.actor.finish.remote(patience), timeout=patience + _SPARE_S)
            self.bring_log()
        with contextlib.suppress(RayError):
            ray.kill(self.actor, no_restart=True)
        with contextlib.suppress(FutureTimeout):
            self.gone.result(_GONE_S)
        self._wait_until_gone()
        self._forget(self)

    def greeted(self, greeting: Greeting) -> None:
        """Its process has started."""
        self.greeting = greeting
        self.log = HostLog(greeting.logs, self._path, f"{self.name}, process {greeting.pid} on {self.node}")

    def opened(self, answer: Answer) -> Any:
        """What ``answer`` holds. Raises what it says was raised."""
        held = pickle.loads(answer.payload)  # noqa: S301 - Pickled by our own process.
        if answer.kind == "raised":
            raise held
        return held

    def error_of(self, error: BaseException) -> AgentRLError:
        """Ray's ``error`` about this host as one of ours."""
        if isinstance(error, RuntimeEnvSetupError):
            return PluginError(
                f"{self.name} on {self.node}: its scheduler.runtime_env could not be made: {_lines(error)}",
                fix="see `ray logs` on that node, or install what it holds there before",
            )
        if isinstance(error, RayActorError) and "No module named 'agentrl" in str(error):
            return PluginError(
                f"{self.node} has no agentrl-ray, which {self.name} needs: {_last_line(error)}",
                fix="install agentrl-core and agentrl-ray, of the versions here, in the environment that runs Ray "
                "there, or name them in scheduler.runtime_env",
            )
        if isinstance(error, RayTaskError):
            return RunError(f"{self.name} on {self.node} failed: {_lines(error)}")
        return self._lost or HostLostError(
            f"{self.name} on {self.node} was lost: {_cause(error)}{self.last_words()}",
            fix="see its log, and Ray's in /tmp/ray/session_latest/logs on that node",
        )

    def last_words(self) -> str:
        """What it printed last, to end a sentence with."""
        return "" if self.log is None else self.log.told()

    def bring_log(self) -> None:
        """Fetch what it has printed since the last time; nothing where it does not answer."""
        log = self.log
        if log is None or not log.offsets or self.gone.done():
            return
        with contextlib.suppress(RayError):
            while log.add(ray.get(self.actor.printed.remote(log.offsets), timeout=_LOGGED_S)):
                pass

    def _submit(self, call: Callable[..., None], *arguments: Any) -> None:
        """Do it in a thread of ours: Ray's own must not wait for us."""
        with contextlib.suppress(RuntimeError):  # The run is over.
            self._answers.submit(call, *arguments)

    def _take(self, number: int, answered: Future[Answer]) -> None:
        with self._lock:
            asked = self._asked.pop(number, None)
        if asked is None:
            return
        try:
            result = self.opened(answered.result(0))
        except RayActorError as error:
            with self._lock:
                self._asked[number] = asked
            self._end(error)
            return
        except RayError as error:
            _settle(asked, None, self.error_of(error))
        except Exception as error:
            _settle(asked, None, error)
        else:
            _settle(asked, result, None)

    def _ended(self, life: Future[None]) -> None:
        self._end(life.exception(0) or RuntimeError("it ended by itself"))

    def _end(self, error: BaseException) -> None:
        if self.gone.done():
            return
        if (
            not self._stopping
            and not _is_of_node(error)
            and (self._is_here or not isinstance(error, ActorUnavailableError))
        ):
            self._bring_last_words()
        how = f"{self.name} on {self.node} was stopped" if self._stopping else None
        lost = HostLostError(how) if how is not None else self.error_of(error)
        if not isinstance(lost, HostLostError):
            lost = HostLostError(lost.message, fix=lost.fix)
        with contextlib.suppress(RayError):
            ray.kill(self.actor, no_restart=True)  # It may go on where only the connection is lost.
        with self._lock:
            self._lost = self._lost or lost
            left = list(self._asked.values())
            self._asked.clear()
        self._forget(self)
        _settle(self.gone, self._lost, None)
        for asked in left:
            _settle(asked, None, self._lost)

    @property
    def _is_here(self) -> bool:
        """Whether its process is on this machine, whose files and processes are ours to look at."""
        return (
            self.greeting is not None
            and self.greeting.hostname == os.uname().nodename
            and all(map(os.path.exists, self.greeting.logs))
        )

    def _bring_last_words(self) -> None:
        """Read the end of its log by another process of its node."""
        log = self.log
        if log is None or not log.offsets:
            return
        if self._is_here:
            log.add(printed_since(log.offsets))
            return
        with contextlib.suppress(RayError):
            reader = ray.remote(printed_since).options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(self.node_id, soft=False),
            )
            log.add(ray.get(reader.remote(log.offsets), timeout=_LOGGED_S))

    def _cancel(self, number: int) -> None:
        with self._lock:
            if self._asked.pop(number, None) is None:
                return
        with contextlib.suppress(RayError):
            self.actor.cancel.remote(number)

    def _wait_until_gone(self) -> None:
        """Where its process is on this machine, wait until it is no more."""
        if self.greeting is None or not self._is_here:
            return
        until = time.monotonic() + _GONE_S
        while _lives(self.greeting.pid) and time.monotonic() < until:
            time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # Another user's: the number was given away again.
    return True


def _settle(future: Future[Any], result: object, error: BaseException | None) -> None:
    """Give ``future`` its result, unless it has one, or nobody waits for it any more."""
    with contextlib.suppress(Exception):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _is_of_node(error: BaseException) -> bool:
    """Whether a host was lost with its node, as far as Ray knows already."""
    text = str(error)
    return any(told in text for told in ("node has died", "node was terminated", "node died", "owner has died"))


def _cause(error: BaseException) -> str:
    if _is_of_node(error):
        return "its node has died"
    if isinstance(error, ActorUnavailableError):
        return "its connection has ended, as where its node has died"
    text = " ".join(str(error).split())
    _, found, cause = text.partition("The actor is dead because ")
    cause, _, _ = (cause if found else text).partition(" Some common causes")
    return cause.removeprefix("its ").replace("worker process has died.", "its process has died.", 1)[:400]


def _last_line(error: BaseException) -> str:
    return _lines(error, 1)


def _lines(error: BaseException, most: int = 3) -> str:
    """The last lines of what Ray says, in which the cause stands, without the colours of a terminal."""
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return " | ".join(lines[-most:])[:600]
