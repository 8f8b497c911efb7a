"""What a server has printed: the stage of its start, and its last lines."""

from __future__ import annotations

import re
from pathlib import Path

from agentrl.errors import one_line

__all__ = ["ServerLog", "stage_of"]

_STAGES = (
    (r"EngineArgs|version \d|non-default args|Resolved architecture", "reading its configuration"),
    (r"Initializing a V1 LLM engine", "starting its engine"),
    (r"Starting to load model", "loading the weights"),
    (r"Loading weights took|Model loading took", "measuring its memory"),
    (r"Dynamo bytecode|[Cc]ompiling a graph", "compiling the model"),
    (r"Capturing CUDA graphs|Graph capturing", "capturing CUDA graphs"),
    (r"KV cache size", "warming up"),
    (r"Starting vLLM server", "opening its port"),
)
_FIRST = "importing vLLM"
_TAIL = 65536
_LINES = 6
_CHARACTERS = 300
_NOISE = re.compile(r"warnings\.warn|Warning: |\bWARNING\b|resource_tracker|^\s|^$|Route: |\] {2,}|\] *File ")
_PREFIX = re.compile(
    r"^(?:\((?:APIServer|EngineCore\w*|Worker\w*|VllmWorker\S*)[^)]*\) ?)?(?:ERROR \S+ \S+ \[\S+\] ?)?"
)
_ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*|^.*: error: .*")
_SEE_BELOW = re.compile(r"\d+ validation errors? for ")
_SEE_ABOVE = re.compile(r"See root cause above|See stack trace for root cause")


def stage_of(text: str) -> str:
    """What a server whose log is ``text`` is doing until it answers."""
    stage = _FIRST
    for pattern, name in _STAGES:
        if re.search(pattern, text):
            stage = name
    return stage


class ServerLog:
    """A file that a server prints to; what earlier servers have printed there is not this one's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin = path.stat().st_size if path.exists() else 0

    @property
    def stage(self) -> str:
        """What the server that starts is doing."""
        return stage_of(self._read())

    @property
    def cause(self) -> str | None:
        """The line that says why it has failed, if there is one: the first error that does not point to another."""
        lines = [_PREFIX.sub("", line) for line in self._read().splitlines()]
        errors = [at for at, line in enumerate(lines) if _ERROR.match(line) and not _SEE_ABOVE.search(line)]
        if not errors:
            return None
        # What pydantic finds wrong stands below the line that says how much it is.
        told = lines[errors[-1] : errors[-1] + (2 if _SEE_BELOW.search(lines[errors[-1]]) else 1)]
        return one_line(" ".join(told))[:_CHARACTERS]

    def last_lines(self) -> str:
        """The last that it printed, on one line; empty where it printed nothing."""
        lines = [line for line in self._read().splitlines() if not _NOISE.search(line)]
        return " | ".join(one_line(line)[:_CHARACTERS] for line in lines[-_LINES:])

    def _read(self) -> str:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(self._begin, size - _TAIL))
                return file.read().decode("utf-8", "replace")
        except OSError:  # Removed meanwhile, as by who clears up: a server goes on without.
            return ""
