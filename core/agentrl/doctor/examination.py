"""An examination: sections one after another, each with its deadline, and none without what it needs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from operator import attrgetter
from typing import Protocol

from agentrl.agents.exceptions import describe
from agentrl.doctor.alarm import Alarm
from agentrl.doctor.case import Case
from agentrl.doctor.checks import ALONE, SERVED, Check
from agentrl.doctor.findings import SEE_WHERE, Diagnosis, Finding, Section, of_error, problem, skipped, warning
from agentrl.errors import AgentRLError
from agentrl.training.interrupts import Interrupts, run_to_end

__all__ = ["Watcher", "examine"]

_GRACE_S = 5.0
"""How long code may go on past a deadline that it has been told of."""
_PULSE_S = 0.5
_END = "end"
_INTERRUPTED = 130
_FIXES = {
    "inference.timeout": "mend what hangs there, or raise inference.timeout where it needs more time",
    "rollout.episode_timeout": "await instead of blocking, or set rollout.mode=subproc, where agents can be ended",
}


class Watcher(Protocol):
    """Whoever is told of an examination as it goes on; ``found`` and ``stuck`` may come from any thread."""

    def doing(self, section: Section, what: str) -> None:
        """What is being looked at."""
        ...

    def found(self, section: Section, finding: Finding) -> None:
        """Something is known."""
        ...

    def raised(self, error: Exception) -> None:
        """A section ended with ``error``, which is among the findings too."""
        ...

    def interrupted(self) -> None:
        """Ctrl-C was pressed, and what runs is being ended."""
        ...

    def left(self) -> None:
        """Ctrl-C was pressed again: the process is about to end at once."""
        ...

    def stuck(self, diagnosis: Diagnosis) -> None:
        """The main thread hangs in code that cannot be ended, and nothing more can be found out: leave the process."""
        ...


def examine(case: Case, watcher: Watcher) -> Diagnosis:
    """Examine everything; whatever goes wrong in a section is among its findings.

    Code that hangs is left after ``inference.timeout`` seconds, an agent's after ``rollout.episode_timeout``.
    Raises nothing but ``KeyboardInterrupt``.
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
        """The sections for which the engine runs, which the first of them starts."""
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
            except Exception as error:  # What foreign code raises when it is to stop.
                self._end(self._as_finding(error))
            finally:
                pulse.cancel()
                self._check = None
                self._alarm.set(_GRACE_S)  # Threads that somebody has started in here are waited for.

    async def _pulse(self) -> None:
        """Put the alarm off for as long as the event loop is not blocked; everything else has deadlines of its own."""
        while True:
            await asyncio.sleep(_PULSE_S)
            self._alarm.set(self._limit(self._check or SERVED[0]))

    @contextlib.contextmanager
    def _section(self, check: Check) -> Iterator[bool]:
        """A section; yields whether it can be examined. What is raised within it is found."""
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
        except Exception as error:  # The boundary to what is examined: anything may be wrong with it.
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
        """Something shows itself after all sections."""
        self._diagnosis.sections.append(Section(_END))
        self._found(finding)

    def _interrupt(self) -> None:
        self._interrupted = True
        self._watcher.interrupted()

    def _expired(self, place: str) -> None:
        """Called from the alarm's thread, while the main one hangs."""
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
