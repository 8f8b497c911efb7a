"""``python -m agentrl.worker --fd N``: a process that runs an agent for a rollout in another one.

A worker is two processes, the one that runs agents' code and its supervisor: see ``agentrl.supervision``.
"""

from __future__ import annotations

import argparse
import os
import sys
from io import TextIOWrapper
from typing import cast

from agentrl.supervision import supervise


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.worker",
        description="Runs an agent for a rollout in another process: with rollout.mode=subproc, agentrl starts it.",
    )
    parser.add_argument("--fd", type=int, required=True, help="descriptor of its end of a connected pair of sockets")
    fd = parser.parse_args().fd

    try:
        os.fstat(fd)
    except OSError as error:
        parser.error(f"--fd {fd}: {error.strerror}")
    supervise(fd)
    _take_over_stdio()

    from agentrl.worker.lifecycle import Channel, serve

    try:
        channel = Channel(fd)
    except OSError as error:
        parser.error(f"--fd {fd}: {error.strerror}")
    return serve(channel)


def _take_over_stdio() -> None:
    """Make standard input empty, and write out what an agent prints at the end of each line."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (sys.stdout, sys.stderr):
        cast(TextIOWrapper, stream).reconfigure(line_buffering=True, errors="backslashreplace")
    del sys.argv[1:]  # An agent's module may read the command line.


if __name__ == "__main__":
    sys.exit(main())
