"""The report of an examination: findings, each a statement with what to do about it, section by section."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrl.errors import AgentRLError, RunError, one_line

__all__ = [
    "SEE_WHERE",
    "Diagnosis",
    "Figure",
    "Finding",
    "Level",
    "Section",
    "futile",
    "note",
    "of_error",
    "ok",
    "problem",
    "skipped",
    "warning",
]

Level = Literal["ok", "note", "warning", "problem", "skipped"]
"""How a finding bears on training.

``ok`` is as it should be, ``note`` is worth knowing and needs no action, ``warning`` lets training run but badly,
``problem`` keeps it from running, and ``skipped`` could not be examined.
"""
SEE_WHERE = "see where with agentrl --debug doctor"
"""The fix of a problem that is not known to have another."""
Figure = Any
"""A plain JSON value: a number, a text, or a list or dict of them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the examination found out."""

    level: Level
    text: str
    """One line, with its numbers."""
    fix: str | None = None
    """What to do about it: a command, a setting or a change of code. ``None`` where nothing is to be done."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """The numbers of the text, for programs; their units are in the names."""
    exit_code: int = 0
    """For a problem, the exit code of the error that a run would end with; else 0."""
    blocks: bool = False
    """Whether the sections that need this one cannot be examined."""
    futile: bool = False
    """Whether training would run but, as far as the examination saw, learn nothing."""
    details: Sequence[str] = ()
    """Lines that people are shown below the text; the figures hold what they say."""

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        figures = {name: _finite(value) for name, value in self.figures.items()}
        return {"level": self.level, "text": self.text, "fix": self.fix, "figures": figures}


def _finite(value: Figure) -> Figure:
    """``value``, or ``None`` for NaN and the infinities, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ok(text: str, **figures: Figure) -> Finding:
    """A finding that something is as it should be."""
    return Finding("ok", text, figures=figures)


def note(text: str, **figures: Figure) -> Finding:
    """A finding that is worth knowing and needs no action."""
    return Finding("note", text, figures=figures)


def warning(text: str, *, fix: str | None = None, **figures: Figure) -> Finding:
    """A finding that training would run but may go badly. ``fix`` is left out only where the text says it."""
    return Finding("warning", one_line(text), fix, figures)


def futile(text: str, *, fix: str, **figures: Figure) -> Finding:
    """A warning that training would run and learn nothing."""
    return Finding("warning", one_line(text), fix, figures, futile=True)


def problem(
    text: str, *, fix: str, like: type[AgentRLError] = RunError, blocks: bool = False, **figures: Figure
) -> Finding:
    """A finding that training would not run. ``like`` is the kind of error that a run would end with."""
    return Finding("problem", one_line(text), fix, figures, like.exit_code, blocks)


def skipped(text: str) -> Finding:
    """A finding that a section was not examined, because one that it needs has a problem."""
    return Finding("skipped", text, blocks=True)


def of_error(error: AgentRLError) -> Finding:
    """The problem that ``error`` is, which kept a section from being examined to its end."""
    return Finding("problem", one_line(error.message), error.fix or SEE_WHERE, {}, error.exit_code, blocks=True)


@dataclass(slots=True)
class Section:
    """The findings about one subject."""

    name: str
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    """The time that its examination took."""

    @property
    def blocked(self) -> bool:
        """Whether sections that need this one cannot be examined."""
        return any(finding.blocks for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "name": self.name,
            "seconds": round(self.seconds, 3),
            "findings": [finding.to_json() for finding in self.findings],
        }


@dataclass(slots=True)
class Diagnosis:
    """The result of an examination: its sections, in the order in which they were examined."""

    sections: list[Section] = field(default_factory=list)

    def of_level(self, level: Level) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self._findings() if finding.level == level]

    @property
    def ready(self) -> bool:
        """Whether training would run."""
        return not self.of_level("problem")

    @property
    def learns(self) -> bool:
        """Whether training would run, and nothing that was seen says that it would learn nothing."""
        return self.ready and not any(finding.futile for finding in self._findings())

    @property
    def exit_code(self) -> int:
        """The exit code of the first problem, or 0 without one."""
        return next((finding.exit_code for finding in self.of_level("problem")), 0)

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "ready": self.ready,
            "learns": self.learns,
            "problems": len(self.of_level("problem")),
            "warnings": len(self.of_level("warning")),
            "skipped": len(self.of_level("skipped")),
            "sections": [section.to_json() for section in self.sections],
        }

    def _findings(self) -> Iterator[Finding]:
        for section in self.sections:
            yield from section.findings
