"""The runs that the pages show: recorded by `agentrl train` on the bundled model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

AGENT = Path(__file__).with_name("agents.py")
_SMALL = (
    "rollout.group_size=4",
    "rollout.tasks_per_step=4",
    "evaluation.tasks=8",
    "training.checkpoint_every=0",
)


def start(place: Path, name: str, *settings: str) -> subprocess.Popen[bytes]:
    """Start a run of small steps in the folder ``place``, with a log beside it."""
    command = [sys.executable, "-m", "agentrl", "train", f"{AGENT}:EveryOutcome"]
    named = [f"run.dir={place}", f"run.name={name}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (place / f"{name}.log").open("wb") as log:
        return subprocess.Popen([*command, *named, *_SMALL, *settings], stdout=log, stderr=log, env=environment)


def record(place: Path, name: str, *settings: str) -> Path:
    """Train a run to its end, and return its folder."""
    code = start(place, name, *settings).wait(timeout=300)
    assert code == 0, (place / f"{name}.log").read_text()
    return place / name


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Stop a run as Ctrl-C does, and wait until it has ended."""
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
