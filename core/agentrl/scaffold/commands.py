"""The commands with which the author of a new plugin goes on."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from agentrl.scaffold.names import GROUPS, PluginKind, PluginName

__all__ = ["next_commands"]


def next_commands(name: PluginName, kind: PluginKind, folder: Path) -> list[str]:
    """Four shell commands, which install, list, test and use the plugin in ``folder``, from the current folder."""
    source = f"{folder}[test]" if folder.is_absolute() else f"./{folder}[test]"
    commands = [
        [_program("python"), "-m", "pip", "install", "-e", source],
        [_program("agentrl"), *_LISTINGS.get(kind, [f"list-{GROUPS[kind][0]}"])],
        [_program("python"), "-m", "pytest", str(folder)],
        [_program("agentrl"), *_use(name.entry, kind, folder)],
    ]
    return [shlex.join(command) for command in commands]


_LISTINGS: dict[PluginKind, list[str]] = {
    "executor": ["plugins"],
    "scheduler": ["plugins"],
    "hooks": ["plugins"],
    "command": ["--help"],
}
"""The command that lists a kind without a listing of its own."""


def _use(entry: str, kind: PluginKind, folder: Path) -> list[str]:
    uses: dict[PluginKind, list[str]] = {
        "agent": ["train", entry],
        "reward": ["train", str(folder / "example_agent.py"), f"reward={entry}"],
        "tasks": ["train", "math", f"tasks.train={entry}", "tasks.eval=arithmetic-heldout"],
        "model": ["train", "math", f"model={entry}"],
        "backend": ["train", "math", f"inference.backend={entry}"],
        "dialect": ["train", str(folder / "example_agent.py")],
        "normaliser": ["train", "math", f"gateway.normalise=[{entry}]"],
        "executor": ["train", "math", f"rollout.mode={entry}"],
        "algorithm": ["train", "math", f"algorithm={entry}"],
        "tracker": ["train", "math", f"trackers=[{entry}]"],
        "scheduler": ["train", "math", f"scheduler={entry}"],
        "command": [entry],
        "hooks": ["train", "math"],
    }
    return uses[kind]


def _program(name: str) -> str:
    """The path of a program of this interpreter's environment; its name alone where a shell would find it."""
    program = Path(sys.executable).parent / name
    found = shutil.which(name)
    if found is not None and Path(found).absolute() == program:
        return name
    here = Path.cwd()
    return str(program.relative_to(here)) if program.is_relative_to(here) else str(program)
