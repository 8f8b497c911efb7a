"""Whether a plugin was made for this version of core."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata

from agentrl.errors import PluginError
from agentrl.plugins.entries import Distribution, normalised

__all__ = ["CORE", "core_version", "unmet_range"]

CORE = "agentrl-core"


@cache
def core_version() -> str:
    """The installed version of agentrl-core."""
    try:
        return metadata.version(CORE)
    except metadata.PackageNotFoundError as error:
        raise PluginError(
            f"{CORE} is on sys.path but not installed", fix="pip install -e . where its code is"
        ) from error


def unmet_range(distribution: Distribution) -> str | None:
    """Why this core is outside the range that ``distribution`` declares, or ``None`` where it is not."""
    for line in distribution.requires:
        if _project(line) == CORE and not _admits(line, core_version()):
            return f"it needs {line.split(';')[0].strip()} and this is {CORE} {core_version()}"
    return None


def _project(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return normalised(match.group()) if match else ""


def _admits(line: str, version: str) -> bool:
    from packaging.requirements import Requirement

    requirement = Requirement(line)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return True
    return requirement.specifier.contains(version, prereleases=True)
