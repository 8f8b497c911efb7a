"""What an agent's process is made from, and the bounds that it is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 2**20


@dataclass(frozen=True, slots=True)
class AgentProcess:
    """Which agent to run, and in what kind of process."""

    reference: str
    """A registered name, ``dist/name``, ``pkg.mod:Obj`` or ``file.py:Obj``, resolved where it runs."""
    kwargs: Mapping[str, Any]
    """``agent.kwargs`` of the config; plain JSON."""
    python: Path
    """The interpreter. A link is not followed: in a virtual environment it is one."""
    env: Mapping[str, str] = field(repr=False)
    """All environment variables of the process; see ``worker_environment``."""
    disabled: tuple[str, ...] = ()
    """Plugins that are not used."""
    outcomes: tuple[str, ...] = ()
    """``agent.outcomes`` of the config."""


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What is known of an agent once its interpreter has imported it."""

    is_async: bool
    """Whether one process can run several episodes at once, and end one of them alone."""
    returns_answer: bool
    """Whether what it returns is never a reward, so that the config must name one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take and how large they may grow."""

    start_s: float = 120.0
    """From starting a process to an imported agent: a framework takes 10 seconds to import on a busy machine."""
    grace_s: float = 5.0
    """How long an agent may take to end once it is cancelled."""
    stop_s: float = 4.0
    """How long a process may take to end once it is told to stop."""
    printed: int = 64 * MIB
    """Most bytes that a process may print while none of its episodes begins or ends."""
    log: int = 8 * MIB
    """Bytes after which a log file is set aside; the one before it is dropped."""


DEFAULT_LIMITS = Limits()
