"""Wall time and CPU of ``agentrl list-agents`` beside the bare interpreter's.

    python -m tests.benchmarks.list_agents

Without environments, and with two of the size of real ones: 80 distributions each, one of them a plugin.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.taken import Taken
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


def taken(command: list[str], environments: Path) -> Taken:
    """What one run takes, from start to exit."""
    environ = {**os.environ, ENVIRONMENTS: str(environments)}
    begun = Taken.now()
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    return Taken.now().since(begun)


def measure(folder: Path) -> dict[str, list[Taken]]:
    """Every run of each command, in turns so that all of them meet the same machine."""
    times: dict[str, list[Taken]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, (command, environments) in COMMANDS.items():
            times[name].append(taken(command, folder / environments))
    return times


def main() -> None:
    """Measure, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        write_environments(Path(folder) / "two")
        times = measure(Path(folder))
    bare = statistics.median(each.wall for each in times["python -c pass"])
    print(f"{'command':<26}{'median ms':>12}{'min ms':>10}{'times bare':>13}{'CPU ms':>10}")
    for name, runs in times.items():
        median, best = statistics.median(each.wall for each in runs), min(each.wall for each in runs)
        cpu = statistics.median(each.cpu for each in runs)
        print(f"{name:<26}{1000 * median:>12.0f}{1000 * best:>10.0f}{median / bare:>13.1f}{1000 * cpu:>10.0f}")


if __name__ == "__main__":
    main()
