"""An examination: sections one after another, each with its deadline, and none without the sections that it needs.

The sections ``ALONE`` come before anything is started. Those in ``SERVED`` run while the inference engine and the
gateway do. Code that hangs is left at its deadline: what awaits is cancelled, and where the main thread itself hangs,
which nothing can end, an ``Alarm`` reports what is known and the process is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

from agentrl.agents.exceptions import code_location, describe
from agentrl.doctor.report import SEE_WHERE, Diagnosis, Finding, Section, of_error, problem, skipped, warning
from agentrl.errors import AgentRLError
from agentrl.loops import TICK_S, AwakeClock
from agentrl.training.interrupts import Interrupts, run_to_end

if TYPE_CHECKING:
    from pathlib import Path

    from agentrl.algorithms.contract import Algorithm
    from agentrl.config.loader import Resolved
    from agentrl.config.models import Config
    from agentrl.doctor.model import ModelSize
    from agentrl.inference.contract import Backend
    from agentrl.learner.learner import Learner
    from agentrl.plugins import Plugins
    from agentrl.rollout.contract import Episode, Group
    from agentrl.tokens.renderer import Renderer
    from agentrl.training.parts import Parts
    from agentrl.training.serving import Serving

__all__ = ["Alarm", "Case", "Watcher", "examine"]

_GRACE_S = 5.0
"""Seconds that code may go on past a deadline at which it was told to end."""
_PULSE_S = 0.5
"""Seconds between two signs that the event loop is not blocked."""
_END = "end"
"""The section of what shows itself when everything is being stopped."""
_INTERRUPTED = 130
"""The exit code after Ctrl-C."""
_FIXES = {
    "inference.timeout": "mend what hangs there, or raise inference.timeout where it needs more time",
    "rollout.episode_timeout": "await instead of blocking, or set rollout.mode=subproc, where agents can be ended",
}


@dataclass
class Case:
    """What is examined, a config and the plugins of this machine, and what sections have found out for later ones.

    ``resolved`` and ``plugins`` are there from the start. Each attribute from ``folder`` on is set by the section that
    finds it out, and read only by sections that need that one.
    """

    resolved: Resolved
    plugins: Plugins
    doing: Callable[[str], None] = lambda _: None
    """Called with a few words about what is being done now; from any thread."""
    warn: Callable[[str], None] = lambda _: None
    """Called with a warning from what runs in the background."""
    complete: bool = False
    """Whether all packages that training needs are installed and can be imported."""
    size: ModelSize | None = None
    """The size of the model; ``None`` where the model was not found."""
    episodes: list[Episode] = field(default_factory=list)
    """Every episode that has ended."""
    episode_ended: Callable[[], None] = lambda: None
    """Called after each of them."""
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    """Holds the engine and the gateway while they run."""

    folder: Path = field(init=False)
    renderer: Renderer = field(init=False)
    parts: Parts = field(init=False)
    backend: Backend = field(init=False)
    algorithm: Algorithm = field(init=False)
    learner: Learner = field(init=False)
    serving: Serving = field(init=False)
    groups: list[Group] = field(init=False)

    @property
    def config(self) -> Config:
        """The config that a run would have."""
        return self.resolved.config


Deadline = Literal["inference.timeout", "rollout.episode_timeout"]


class Check(NamedTuple):
    """How one section is examined."""

    section: str
    doing: str
    """What it begins with, in a few words."""
    target: str
    """``module:function`` in this package. It is imported when its turn comes, for what it imports may be missing."""
    needs: tuple[str, ...] = ()
    """The sections that it needs; where one of them is blocked, this one is skipped."""
    deadline: Deadline = "inference.timeout"
    """The configuration key of the seconds that it may keep everything else from running."""

    @property
    def function(self) -> Any:
        """The function that takes the ``Case`` and yields findings."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(f"agentrl.doctor.{module}"), name)


ALONE = (
    Check("versions", "reading what is installed", "versions:versions"),
    Check("plugins", "importing every plugin", "plugins:plugins"),
    Check("model", "loading the tokenizer", "model:model", ("versions",)),
    Check("machine", "looking at the machine", "machine:machine"),
    Check("config", "resolving names", "config:config", ("versions", "plugins", "model")),
    Check("learner", "loading the model", "engine:learner", ("machine", "config")),
)
"""The sections before anything is started; their functions are generators."""

SERVED = (
    Check("engine", "starting the inference engine", "engine:engine", ("learner",)),
    Check("agent", "running one episode", "agent:agent", ("engine",), "rollout.episode_timeout"),
    Check("group", "running groups of episodes", "group:group", ("agent",), "rollout.episode_timeout"),
    Check("step", "learning from the episodes", "engine:step", ("group",)),
)
"""The sections while the engine and the gateway run; their functions are asynchronous generators."""


class Watcher(Protocol):
    """Follows an examination as it proceeds. ``doing``, ``found`` and ``stuck`` may be called from any thread."""

    def doing(self, section: Section, what: str) -> None:
        """``what``, in a few words, is being examined now."""
        ...

    def found(self, section: Section, finding: Finding) -> None:
        """``finding`` was added to ``section``."""
        ...

    def raised(self, error: Exception) -> None:
        """A section was ended by ``error``; the finding about it follows."""
        ...

    def interrupted(self) -> None:
        """Ctrl-C was pressed; what runs is being ended."""
        ...

    def left(self) -> None:
        """Ctrl-C was pressed again; the process ends at once after this call."""
        ...

    def stuck(self, diagnosis: Diagnosis) -> None:
        """The main thread hangs in code that cannot be ended. The callee should end the process."""
        ...


def examine(case: Case, watcher: Watcher) -> Diagnosis:
    """Examine everything, and return the diagnosis; whatever goes wrong in a section is among its findings.

    Code that hangs is left after ``inference.timeout`` seconds, an agent's after ``rollout.episode_timeout``.
    Raises ``KeyboardInterrupt`` after Ctrl-C, and nothing else.
    """
    return _Examination(case, watcher).run()


class _Examination:
    def __init__(self, case: Case, watcher: Watcher) -> None:
        self._case = case
        self._watcher = watcher
        self._diagnosis = Diagnosis()
        self._alarm = Alarm(self._expired)
        self._check: Check | None = None
        self._doing = ""
        self._interrupted = False
        self._lock = threading.Lock()
        case.doing, case.warn = self._do, lambda text: self._found(warning(text))

    def run(self) -> Diagnosis:
        with self._alarm:
            for check in ALONE:
                with self._section(check) as possible:
                    if possible:
                        for finding in check.function(self._case):
                            self._found(finding)
            try:
                with Interrupts(self._interrupt, self._watcher.left) as interrupts:
                    run_to_end(lambda: self._served(interrupts), interrupts)
            except asyncio.CancelledError as error:
                raise KeyboardInterrupt from error
            if self._interrupted:
                raise KeyboardInterrupt
        return self._diagnosis

    async def _served(self, interrupts: Interrupts) -> None:
        """Examine the sections in ``SERVED``; the first of them starts the engine."""
        task = asyncio.current_task()
        assert task is not None
        pulse = asyncio.ensure_future(self._pulse())
        with interrupts.cancelling(task):
            try:
                async with self._case.stack:
                    for check in SERVED:
                        with self._section(check) as possible:
                            if possible:
                                async for finding in check.function(self._case):
                                    self._found(finding)
            except Exception as error:  # Foreign code may raise anything when it is stopped.
                self._end(self._as_finding(error))
            finally:
                pulse.cancel()
                self._check = None
                self._alarm.set(_GRACE_S)  # Python waits for the threads that somebody has started.

    async def _pulse(self) -> None:
        """Put the alarm off as long as the event loop is not blocked; what awaits has deadlines of its own."""
        while True:
            await asyncio.sleep(_PULSE_S)
            self._alarm.set(self._limit(self._check or SERVED[0]))

    @contextlib.contextmanager
    def _section(self, check: Check) -> Iterator[bool]:
        """Begin a section, and yield whether it can be examined. What is raised in it becomes a finding."""
        blocked = {section.name for section in self._diagnosis.sections if section.blocked}
        section, self._check, began = Section(check.section), check, time.monotonic()
        self._diagnosis.sections.append(section)
        try:
            if missing := [name for name in check.needs if name in blocked]:
                self._found(skipped(f"needs {' and '.join(missing)}"))
            else:
                self._alarm.set(self._limit(check))
                self._do(check.doing)
            yield not missing
        except Exception as error:  # The boundary to what is examined, which may raise anything.
            self._found(self._as_finding(error))
        finally:
            section.seconds = time.monotonic() - began

    def _limit(self, check: Check) -> float:
        seconds: float = attrgetter(check.deadline)(self._case.config)
        return seconds + _GRACE_S

    def _do(self, what: str) -> None:
        self._doing = what
        self._watcher.doing(self._diagnosis.sections[-1], what)

    def _as_finding(self, error: Exception) -> Finding:
        self._watcher.raised(error)
        return (
            of_error(error) if isinstance(error, AgentRLError) else problem(describe(error), fix=SEE_WHERE, blocks=True)
        )

    def _found(self, finding: Finding) -> None:
        with self._lock:
            section = self._diagnosis.sections[-1]
            section.findings.append(finding)
            self._watcher.found(section, finding)

    def _end(self, finding: Finding) -> None:
        """Add a finding after all sections."""
        self._diagnosis.sections.append(Section(_END))
        self._found(finding)

    def _interrupt(self) -> None:
        self._interrupted = True
        self._watcher.interrupted()

    def _expired(self, place: str) -> None:
        """Report that the main thread hangs at ``place``; called from the alarm's thread."""
        if self._interrupted:
            self._watcher.left()
            os._exit(_INTERRUPTED)
        if self._check is None:
            self._end(problem("threads of the agent or of a plugin do not end", fix="end them, or make them daemons"))
        else:
            seconds = attrgetter(self._check.deadline)(self._case.config)
            text = f"{self._doing} has not ended within {seconds:g} s{place}, and cannot be ended"
            self._found(problem(text, fix=_FIXES[self._check.deadline], blocks=True))
            self._skip_the_rest(self._check)
        self._watcher.stuck(self._diagnosis)

    def _skip_the_rest(self, stuck: Check) -> None:
        checks = (*ALONE, *SERVED)
        for check in checks[checks.index(stuck) + 1 :]:
            self._diagnosis.sections.append(Section(check.section))
            self._found(skipped(f"needs {stuck.section} to end"))


class Alarm:
    """The last deadline, for code that neither ends nor lets anything else run.

    Once the time that ``set`` gave is over, ``expired`` is called from a thread of the alarm's own, with the place in
    the code, as `` at FILE:LINE``, at which the thread that made the alarm is. What runs there cannot be ended from
    outside, so the callee should end the process.
    """

    def __init__(self, expired: Callable[[str], None]) -> None:
        self._expired = expired
        self._clock = AwakeClock()
        self._watched = threading.get_ident()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._wait, name="agentrl-alarm", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(timeout=5)

    def set(self, seconds: float) -> None:
        """Begin to wait anew, for ``seconds``."""
        with self._changed:
            self._deadline = self._clock.time() + seconds
            self._changed.notify()

    def _wait(self) -> None:
        self._clock.start()
        with self._changed:
            while not self._stopped:
                if self._deadline is not None and self._clock.time() >= self._deadline:
                    break
                self._changed.wait(TICK_S)
                self._clock.tick()
            if self._stopped:
                return
        self._expired(self._place())

    def _place(self) -> str:
        frame = sys._current_frames().get(self._watched)
        return "" if frame is None else code_location(traceback.extract_stack(frame))
