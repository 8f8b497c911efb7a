"""Wall time of ``agentrl list-agents`` beside the bare interpreter's: ``python -m tests.benchmarks.list_agents``."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 20
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "agentrl list-agents": [str(Path(sys.executable).with_name("agentrl")), "list-agents"],
    "agentrl --help": [str(Path(sys.executable).with_name("agentrl")), "--help"],
}


def milliseconds(command: list[str]) -> float:
    """How long one run takes, from start to exit."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Run the commands in turns, so that all of them meet the same machine, and print the table."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            times[name].append(milliseconds(command))
    bare = statistics.median(times["python -c pass"])
    print(f"{'command':<22}{'median ms':>12}{'min ms':>10}{'times bare':>13}")
    for name, of_one in times.items():
        median = statistics.median(of_one)
        print(f"{name:<22}{median:>12.0f}{min(of_one):>10.0f}{median / bare:>13.1f}")


if __name__ == "__main__":
    main()
