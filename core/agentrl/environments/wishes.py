"""What was asked for when an environment is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from agentrl.environments.known import environment_at
from agentrl.environments.places import is_environment_folder
from agentrl.environments.sources import parse_source
from agentrl.errors import ConfigError

__all__ = ["Wish", "completed"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for."""

    name: str
    sources: tuple[str, ...] = ()
    """Folders and requirements; without any the name decides."""
    editable: bool = False
    """Whether folders are installed as they are, so that later changes to them count."""
    python: str | None = None
    """The interpreter to make it of; ``None`` for this one."""
    replace: bool = False
    """Whether an environment of that name goes; what is not asked for anew is as it was in that one."""
    timeout_s: float = 1800


def completed(wish: Wish, folder: Path) -> Wish:
    """``wish`` with what the environment that it replaces was made of; folders as absolute paths.

    Raises ``ConfigError`` where ``folder`` holds an environment that is not to be replaced, or something else.
    """
    if (existing := environment_at(folder)) is not None:
        if not wish.replace:
            raise ConfigError(f"there is an environment {folder.name!r} already", fix=existing.remedy)
        before = existing.record
        if not wish.sources:
            wish = replace(wish, sources=before.sources, editable=wish.editable or before.editable)
        wish = replace(wish, python=wish.python or before.interpreter)
    elif folder.exists() and not is_environment_folder(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} holds something that is no environment", fix="move it, or take another name")
    return replace(wish, sources=tuple(parse_source(text).text for text in wish.sources))
