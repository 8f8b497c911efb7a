"""That what was installed from wheels is found by itself: ``python tests/installed.py LISTING NAME [AGENT]``.

Run by an interpreter that has the wheels of core and of a plugin, it fails unless core is imported from where it was
installed, and, in a folder outside of the checkout, ``agentrl LISTING`` (such as list-agents) shows NAME, and, where an
AGENT is named, one step of training with it leaves a checkpoint.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SMALL = ("training.steps=1", "rollout.tasks_per_step=1", "rollout.group_size=2", "tasks.eval=null")


def main(listing: str, name: str, agent: str = "") -> None:
    """Check the installation; raises ``AssertionError`` where something is not as it should be."""
    import agentrl

    assert Path(agentrl.__file__).is_relative_to(sys.prefix), f"core is imported from {agentrl.__file__}"
    with tempfile.TemporaryDirectory() as room:
        shown = printed(room, listing, "--json")
        names = {each["name"] for listed in json.loads(shown).values() for each in listed if "name" in each}
        assert name in names, f"`agentrl {listing}` does not show {name}:\n{shown}"
        if agent:
            printed(room, "train", agent, *SMALL, "run.dir=runs", "run.name=installed")
            assert json.loads(Path(room, "runs/installed/summary.json").read_text())["outcome"] == "completed"
            assert Path(room, "runs/installed/checkpoints/step-000001/config.json").exists()
    print(f"installed: `agentrl {listing}` shows {name}{agent and f', and {agent} trains'}")


def printed(folder: str, *arguments: str) -> str:
    """What ``agentrl`` prints for ``arguments`` in ``folder``; raises where it fails."""
    command = [sys.executable, "-P", "-m", "agentrl", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"agentrl {' '.join(arguments)}:\n{done.stderr}"
    return done.stdout


if __name__ == "__main__":
    main(*sys.argv[1:])
