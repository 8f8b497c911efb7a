"""``python -m agentrl.hosting --fd N``: a process that holds one object for the process that has started it.

It is two processes, one that holds the object and its supervisor: see ``agentrl.supervision``. Signals that end a run
are the run's to answer: it stops its hosts once it has saved what they hold.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import socket
import sys
from io import TextIOWrapper
from types import FrameType
from typing import cast

from agentrl.supervision import supervise


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.hosting", description="Holds an object of a run in another process: agentrl starts it."
    )
    parser.add_argument("--fd", type=int, required=True, help="descriptor of its end of a connected pair of sockets")
    fd = parser.parse_args().fd
    try:
        os.fstat(fd)
    except OSError as error:
        parser.error(f"--fd {fd}: {error.strerror}")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave_to_the_run)
    supervise(fd)
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        cast(TextIOWrapper, stream).reconfigure(line_buffering=True, errors="backslashreplace")
    del sys.argv[1:]

    from agentrl.hosting.holding import hold
    from agentrl.hosting.wire import Wire

    return hold(Wire(socket.socket(fileno=fd)))


def _leave_to_the_run(number: int, frame: FrameType | None) -> None:
    """Do nothing. Unlike a signal that is ignored outright, it is not ignored in what this process starts."""


if __name__ == "__main__":
    sys.exit(main())
