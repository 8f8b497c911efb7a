"""Whether a new environment can run what it was made for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from agentrl.environments.environment import Environment
from agentrl.environments.inside import read_report
from agentrl.environments.places import LOG
from agentrl.environments.processes import child_environment, run_shown
from agentrl.errors import PluginError
from agentrl.plugins.entries import CORE, Broken, core_version

__all__ = ["check_environment"]

_CODE = """
import sys, pathlib, agentrl.worker, agentrl.environments.inside as inside
inside.report(pathlib.Path(sys.argv[1]))
"""


def check_environment(
    environment: Environment, environ: dict[str, str], deadline: float, show: Callable[[str], None]
) -> list[Broken]:
    """Import the environment's agents in its interpreter, and return those that do not load, with the reason.

    Raises ``PluginError`` where agentrl-core itself is missing, does not load or is another version than this one.
    """
    if environment.core != core_version():
        there = f"{CORE} {environment.core}" if environment.core else f"no {CORE}"
        raise PluginError(
            f"what was installed brought {there} and this is {core_version()}",
            fix="the two have to be the same: install that version here, or name other sources with --from",
        )
    with tempfile.TemporaryDirectory(prefix="agentrl-") as folder:
        path = Path(folder) / "report.json"
        command = [str(environment.python), "-I", "-c", _CODE, str(path)]
        code, lines = run_shown(command, child_environment(environ), environment.path / LOG, deadline, show)
        if code:
            reason = lines[-1] if lines else f"exit code {code}"
            raise PluginError(f"{CORE} does not run in the environment: {reason}", fix="name other sources with --from")
        return read_report(path)
