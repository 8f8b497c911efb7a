"""Whether a plugin was made for this version of core."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata

from agentrl.errors import PluginError
from agentrl.plugins.entries import Distribution, normalised

__all__ = ["CORE", "OLDEST_PYTHON", "core_version", "unmet_range"]

CORE = "agentrl-core"

OLDEST_PYTHON = (3, 11)
"""The first version of Python that core runs on."""


@cache
def core_version() -> str:
    """The installed version of agentrl-core."""
    try:
        return metadata.version(CORE)
    except metadata.PackageNotFoundError as error:
        raise PluginError(
            f"{CORE} is on sys.path but not installed", fix="pip install -e . where its code is"
        ) from error


def unmet_range(distribution: Distribution, version: str | None = None) -> str | None:
    """Why core is outside the range that ``distribution`` declares, or ``None`` where it is not.

    ``version`` is that of the core beside the distribution, by default this one.
    """
    if normalised(distribution.name) == CORE:
        return None
    for line in distribution.requires:
        if _project(line) == CORE and (problem := _problem(line, version or core_version())):
            return problem
    return None


def _project(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return normalised(match.group()) if match else ""


def _problem(line: str, version: str) -> str | None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return f"its requirement {line!r} cannot be read"
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if not applies or requirement.specifier.contains(version, prereleases=True):
        return None
    return f"it needs {CORE}{requirement.specifier} and this is {version}"
