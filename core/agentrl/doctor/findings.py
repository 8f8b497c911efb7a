"""What an examination finds: single statements, each with what to do about it, section by section."""

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
"""A note is nobody's fault; a warning does not keep from training, a problem does."""
SEE_WHERE = "see where with agentrl --debug doctor"
"""The fix for what does not say its own."""
Figure = Any
"""Plain JSON: a number, a text, or a list or dict of them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is known now."""

    level: Level
    text: str
    """One line, its figures included."""
    fix: str | None = None
    """What to do about it: a command or a setting."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """What the text says in numbers, for programs; units are in the names."""
    exit_code: int = 0
    """Of a problem: that of the error which a run would end with."""
    blocks: bool = False
    """Whether what needs this section cannot be looked at any more."""
    futile: bool = False
    """Whether training would run and, from all that was seen, learn nothing."""

    details: Sequence[str] = ()
    """Lines to show below, for people; what they say is among the figures."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        figures = {name: _finite(value) for name, value in self.figures.items()}
        return {"level": self.level, "text": self.text, "fix": self.fix, "figures": figures}


def _finite(value: Figure) -> Figure:
    """JSON knows no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ok(text: str, **figures: Figure) -> Finding:
    """Something is as it should be."""
    return Finding("ok", text, figures=figures)


def note(text: str, **figures: Figure) -> Finding:
    """Something to know."""
    return Finding("note", text, figures=figures)


def warning(text: str, *, fix: str | None = None, **figures: Figure) -> Finding:
    """Training works and may go badly; ``fix`` is missing only where the text says it."""
    return Finding("warning", one_line(text), fix, figures)


def futile(text: str, *, fix: str, **figures: Figure) -> Finding:
    """A warning that training would learn nothing."""
    return Finding("warning", one_line(text), fix, figures, futile=True)


def problem(
    text: str, *, fix: str, like: type[AgentRLError] = RunError, blocks: bool = False, **figures: Figure
) -> Finding:
    """Training would not work; ``like`` is the error that it would end with."""
    return Finding("problem", one_line(text), fix, figures, like.exit_code, blocks)


def skipped(text: str) -> Finding:
    """Something could not be looked at, for a reason that stands above."""
    return Finding("skipped", text, blocks=True)


def of_error(error: AgentRLError) -> Finding:
    """The problem that kept a section from being examined to its end."""
    return Finding("problem", one_line(error.message), error.fix or SEE_WHERE, {}, error.exit_code, blocks=True)


@dataclass(slots=True)
class Section:
    """Everything about one subject."""

    name: str
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def blocked(self) -> bool:
        """Whether sections that need this one cannot be examined."""
        return any(finding.blocks for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "seconds": round(self.seconds, 3),
            "findings": [finding.to_json() for finding in self.findings],
        }


@dataclass(slots=True)
class Diagnosis:
    """All sections, in the order in which they were examined."""

    sections: list[Section] = field(default_factory=list)

    def of_level(self, level: Level) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self._findings() if finding.level == level]

    @property
    def ready(self) -> bool:
        """Whether training would work."""
        return not self.of_level("problem")

    @property
    def learns(self) -> bool:
        """Whether training would work, and some episode did better than another of its group, where groups ran."""
        return self.ready and not any(finding.futile for finding in self._findings())

    @property
    def exit_code(self) -> int:
        """0, or that of the first problem."""
        return next((finding.exit_code for finding in self.of_level("problem")), 0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
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
