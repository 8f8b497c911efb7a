"""Wall time of ``agentrl list-agents`` beside the bare interpreter's: ``python -m tests.benchmarks.list_agents``.

Without environments, and with two of the size of real ones: 80 distributions each, one of them a plugin.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.environments.known import write_camel
from tests.plugins.installing import install

from agentrl.environ import ENVIRONMENTS

ROUNDS = 20
DISTRIBUTIONS = 80
AGENTRL = str(Path(sys.executable).with_name("agentrl"))
COMMANDS = {
    "python -c pass": ([sys.executable, "-c", "pass"], "none"),
    "agentrl list-agents": ([AGENTRL, "list-agents"], "none"),
    "the same, 2 environments": ([AGENTRL, "list-agents"], "two"),
    "agentrl --help": ([AGENTRL, "--help"], "none"),
}


def write_environments(folder: Path) -> None:
    """Two environments."""
    for name in ("one", "two"):
        site = write_camel(folder / name, f"agentrl-{name}", (f"{name}-math",))
        for index in range(DISTRIBUTIONS):
            install(site, f"dependency-{index}", {"console_scripts": {"tool": "tool:main"}})


def milliseconds(command: list[str], environments: Path) -> float:
    """How long one run takes, from start to exit."""
    environ = {**os.environ, ENVIRONMENTS: str(environments)}
    start = time.perf_counter()
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - start)


def measure(folder: Path) -> dict[str, list[float]]:
    """Milliseconds of each command, run in turns so that all of them meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, (command, environments) in COMMANDS.items():
            times[name].append(milliseconds(command, folder / environments))
    return times


def main() -> None:
    """Measure, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        write_environments(Path(folder) / "two")
        times = measure(Path(folder))
    bare = statistics.median(times["python -c pass"])
    print(f"{'command':<26}{'median ms':>12}{'min ms':>10}{'times bare':>13}")
    for name, of_one in times.items():
        median = statistics.median(of_one)
        print(f"{name:<26}{median:>12.0f}{min(of_one):>10.0f}{median / bare:>13.1f}")


if __name__ == "__main__":
    main()
