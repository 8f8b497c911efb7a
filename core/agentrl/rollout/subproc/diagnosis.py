"""Why an interpreter cannot run agents: what it says when it is asked."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Mapping
from typing import Any

from agentrl.environments.environment import environment_of
from agentrl.environments.sources import core_source
from agentrl.errors import PluginError
from agentrl.loops import run_in_thread
from agentrl.plugins.entries import CORE, OLDEST_PYTHON, core_version
from agentrl.rollout.subproc.contract import AgentProcess
from agentrl.worker.protocol import PROTOCOL

__all__ = ["diagnose", "update_fix", "wrong_protocol"]

_DEADLINE_S = 20.0
_QUESTION = """
import sys
sys.path[:] = filter(None, sys.path)  # The current folder may hold a json.py, and old Pythons have no -P.
import json
from importlib.util import find_spec
core = find_spec("agentrl") is not None
print(json.dumps({
    "agentrl interpreter": list(sys.version_info[:3]),
    "core": core,
    "worker": core and find_spec("agentrl.worker") is not None,
}))
"""


async def diagnose(process: AgentProcess, how: str) -> PluginError:
    """The error of a process that ended before its agent was there; ``how`` tells how it ended."""
    facts = await run_in_thread(_ask, process)
    python = process.python
    if facts is None:
        return PluginError(f"{python} is no Python interpreter: it {how}", fix="set agent.python to one")
    version = tuple(facts["agentrl interpreter"])
    if version < OLDEST_PYTHON:
        return PluginError(
            f"{python} is Python {_dotted(version)}, and agents run on Python {_dotted(OLDEST_PYTHON)} or later",
            fix="set agent.python to a later one",
        )
    if not facts["core"]:
        return PluginError(f"{python} has no {CORE}", fix=update_fix(process))
    if not facts["worker"]:
        return PluginError(f"{python} has an {CORE} that is too old to run agents", fix=update_fix(process))
    return PluginError(
        f"the process of agent {process.reference!r} did not get as far as its first episode: it {how}",
        fix=f"see what importing the agent does in {python}",
    )


def wrong_protocol(process: AgentProcess, hello: Mapping[str, Any]) -> PluginError:
    """The error of a worker of another version."""
    theirs, ours = hello.get("core") or "of unknown version", core_version()
    return PluginError(
        f"{process.python} has {CORE} {theirs}, whose worker speaks protocol {hello.get('protocol')}; "
        f"{CORE} {ours} here speaks {PROTOCOL}",
        fix=update_fix(process),
    )


def update_fix(process: AgentProcess) -> str:
    """The command that gives an interpreter this version of core."""
    known = environment_of(process.python)
    if known is not None:
        return known.remedy
    core = core_source()
    if core.folder is not None:
        return f"{process.python} -m pip install --force-reinstall {shlex.quote(str(core.folder))}"
    return f"{process.python} -m pip install '{CORE}=={core_version()}'"


def _ask(process: AgentProcess) -> dict[str, Any] | None:
    """What the interpreter says about itself; ``None`` where it does not speak Python."""
    try:
        answer = subprocess.run(  # noqa: S603
            [os.path.expanduser(process.python), "-c", _QUESTION],
            env=process.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_DEADLINE_S,
        )
        facts = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None
    return facts if isinstance(facts, dict) and "agentrl interpreter" in facts else None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
