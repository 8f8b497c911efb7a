"""An environment: an interpreter of its own, with agentrl-core and the plugins that live there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from agentrl.environments.record import Record
from agentrl.plugins.entries import CORE, Broken, Distribution, Entry, Scan, normalised, scan, unmet_range

__all__ = ["Environment"]


@dataclass(frozen=True)
class Environment:
    """What ``agentrl env create`` has made. What is installed in it is read without starting its interpreter."""

    name: str
    path: Path
    python: Path
    """Its interpreter, as ``agent.python`` takes it."""
    record: Record

    @property
    def core(self) -> str | None:
        """The version of agentrl-core in it, or ``None`` where that has been removed."""
        versions = [entry.distribution.version for entry in self._scan.entries if _is_core(entry.distribution)]
        return versions[0] if versions else None

    @property
    def fault(self) -> str | None:
        """Why nothing can run in it, or ``None`` where something can."""
        if not os.access(self.python, os.X_OK):
            return f"its interpreter {self.python} is gone"
        return None if self.core else f"{CORE} is not installed in it"

    @property
    def remedy(self) -> str:
        """The command that makes it anew."""
        return f"agentrl env create {self.name} --replace"

    @property
    def plugins(self) -> tuple[Distribution, ...]:
        """The distributions in it that declare entry points of ours, core aside."""
        distributions = {entry.distribution: None for entry in self._scan.entries}
        return tuple(distribution for distribution in distributions if not _is_core(distribution))

    def entries(self, kind: str) -> tuple[Entry, ...]:
        """What its plugins name of ``kind``, sorted by name; core's own names are not its."""
        return tuple(
            entry
            for entry in self._scan.entries
            if entry.kind == kind and not _is_core(entry.distribution) and entry.distribution not in self._unmet
        )

    @property
    def broken(self) -> tuple[Broken, ...]:
        """Plugins in it that cannot be used, as far as their metadata tells."""
        unmet = (Broken(each.name, each, reason) for each, reason in self._unmet.items())
        return (*self._scan.broken, *unmet)

    @property
    def site_packages(self) -> list[str]:
        """The folders of what is installed in it."""
        return [str(folder) for folder in self.path.glob("lib/python*/site-packages")]

    @cached_property
    def _scan(self) -> Scan:
        return scan(self.site_packages)

    @cached_property
    def _unmet(self) -> dict[Distribution, str]:
        reasons = {distribution: unmet_range(distribution, self.core) for distribution in self.plugins}
        return {distribution: reason for distribution, reason in reasons.items() if reason}


def _is_core(distribution: Distribution) -> bool:
    return normalised(distribution.name) == CORE
