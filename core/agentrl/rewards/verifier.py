"""Runs the `math-verify` library in a process of its own, because a comparison may never end.

The library's own time limits are alarm signals, which work on a main thread only, and rewards are not computed on one.
A process can always be killed. Run as a module, this file is that process: it reads a line of JSON ``[truth, answer]``
at a time from its standard input and writes ``true`` or ``false`` to its standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref

__all__ = ["Verifier"]

_START = 60.0
"""Seconds that the process may take to import the library, in addition to the time of a comparison."""


class Verifier:
    """Compares one pair at a time. Its process starts with the first comparison and ends with this object."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def equal(self, truth: str, answer: str) -> bool:
        """Whether the two are mathematically equal; ``False`` where that is not known after ``timeout`` seconds.

        It blocks, and may be called from any thread.
        """
        with self._lock:
            if self._process is None:
                self._process = self._start()
            verdict = _ask(self._process, truth, answer, self._timeout)
            if verdict is None:
                _end(self._process)
                self._process = None
            return bool(verdict)

    def _start(self) -> subprocess.Popen[str]:
        # A session of its own keeps a Ctrl-C from the process; it ends when its standard input does.
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", "agentrl.rewards.verifier", str(self._timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,
        )
        weakref.finalize(self, _end, process)
        _ask(process, "1", "1", self._timeout + _START)
        return process


def _ask(process: subprocess.Popen[str], truth: str, answer: str, timeout: float) -> bool | None:
    """The process's verdict, or ``None`` where it has not answered in time and is dead."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = threading.Timer(timeout, process.kill)
    deadline.start()
    try:
        process.stdin.write(json.dumps([truth, answer]) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        return None
    finally:
        deadline.cancel()
    return bool(json.loads(line)) if line else None


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _serve(timeout: float) -> None:
    from math_verify import parse, verify

    answers, sys.stdout = sys.stdout, sys.stderr  # nothing but verdicts may reach the pipe
    seconds = max(1, round(timeout))
    for line in sys.stdin:
        truth, answer = json.loads(line)
        marked = any(mark in truth for mark in ("$", r"\(", r"\[", r"\boxed"))
        gold = parse(truth if marked else f"${truth}$", parsing_timeout=seconds) or parse(
            truth, parsing_timeout=seconds
        )
        print(
            json.dumps(verify(gold, parse(answer, parsing_timeout=seconds), timeout_seconds=seconds)),
            file=answers,
            flush=True,
        )


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
