"""What the author of a new plugin types next."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from agentrl.scaffold.naming import PluginKind, PluginName

__all__ = ["next_commands"]


def next_commands(name: PluginName, kind: PluginKind, folder: Path) -> list[str]:
    """Shell commands that install, list, test and train the plugin in ``folder``, from the current folder."""
    source = f"{folder}[test]" if folder.is_absolute() else f"./{folder}[test]"
    train = {
        "agent": [name.entry],
        "reward": [str(folder / "example_agent.py"), f"reward={name.entry}"],
        "backend": ["math", f"inference.backend={name.entry}"],
    }[kind]
    commands = [
        [_program("python"), "-m", "pip", "install", "-e", source],
        [_program("agentrl"), f"list-{kind}s"],
        [_program("python"), "-m", "pytest", str(folder)],
        [_program("agentrl"), "train", *train],
    ]
    return [shlex.join(command) for command in commands]


def _program(name: str) -> str:
    """A program of this interpreter's environment, by its name alone where that finds it."""
    program = Path(sys.executable).parent / name
    found = shutil.which(name)
    if found is not None and Path(found).absolute() == program:
        return name
    here = Path.cwd()
    return str(program.relative_to(here)) if program.is_relative_to(here) else str(program)
