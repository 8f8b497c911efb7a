"""Plugins: what is installed, what of it is broken, disabled or in conflict, and what lives in environments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from agentrl.doctor.case import Case
from agentrl.doctor.environments import known_environments
from agentrl.doctor.findings import Finding, note, ok, problem, warning
from agentrl.doctor.requirements import Unmet, unmet_requirements
from agentrl.doctor.usage import Usage
from agentrl.errors import PluginError
from agentrl.plugins.entries import CORE, Broken, Distribution, Entry, normalised
from agentrl.plugins.kinds import HOOKS, KINDS
from agentrl.plugins.manager import Plugins

__all__ = ["plugins"]


def plugins(case: Case) -> Iterator[Finding]:
    """What keeps plugins from being used: a problem where this config needs the plugin, else a warning."""
    installed, usage = case.plugins, Usage.of(case.config, case.plugins)
    installed.load_everything()
    yield from _listed(installed)
    yield from _disabled(installed)
    for broken in installed.broken:
        if case.complete or not _is_core(broken.distribution):
            yield _broken(broken, usage)
    for claims in installed.conflicts:
        yield _conflict(claims, usage)
    for distribution in sorted({entry.distribution for entry in installed.installed}, key=str):
        if not _is_core(distribution):
            for unmet in unmet_requirements(distribution.name):
                yield _unmet(unmet, distribution, usage)
    yield from known_environments(case)


def _listed(installed: Plugins) -> Iterator[Finding]:
    distributions: dict[Distribution, Counter[str]] = {}
    for entry in installed.installed:
        distributions.setdefault(entry.distribution, Counter())[_noun(entry.kind)] += 1
    for distribution, kinds in sorted(distributions.items(), key=lambda item: str(item[0])):
        counted = [f"{count} {noun}{'s' * (count > 1)}" for noun, count in sorted(kinds.items())]
        figures = {"distribution": distribution.name, "version": distribution.version, "entries": dict(kinds)}
        yield ok(f"{distribution}: {', '.join(counted)}", **figures)


def _noun(name: str) -> str:
    return "hook plugin" if name == HOOKS else KINDS[name].noun


def _disabled(installed: Plugins) -> Iterator[Finding]:
    for entry in installed.installed:
        if source := installed.disabled_by(entry):
            yield note(f"{_noun(entry.kind)} {entry.name} ({entry.distribution}) is disabled by {source}")
    for name in installed.missing:
        yield note(f"{name} is disabled, and not installed")


def _broken(broken: Broken, usage: Usage) -> Finding:
    fix = f"update {broken.distribution.name}, or leave it out with -p no:{broken.name}"
    if usage.names(broken):
        return problem(f"{broken}", fix=fix, like=PluginError, blocks=True, plugin=broken.name)
    return warning(f"takes no part: {broken}", fix=fix, plugin=broken.name)


def _conflict(claims: tuple[Entry, ...], usage: Usage) -> Finding:
    first = claims[0]
    text = f"{_noun(first.kind)} {first.name} is claimed by {' and '.join(str(entry.distribution) for entry in claims)}"
    choices = [entry.qualified for entry in claims]
    fix = f"write {' or '.join(choices)}"
    if (first.kind, first.name) in usage.references:
        return problem(text, fix=fix, like=PluginError, blocks=True, references=choices)
    return warning(text, fix=f"where you mean one of them, {fix}", references=choices)


def _unmet(unmet: Unmet, distribution: Distribution, usage: Usage) -> Finding:
    """A requirement of a requirement may be declared too strictly, so that one is never more than a warning."""
    short = normalised(distribution.name).removeprefix("agentrl-")
    fix = f"pip install '{unmet.install}', or keep {distribution.name} apart: agentrl env create {short}"
    figures: dict[str, Any] = {
        "distribution": distribution.name,
        "requirement": unmet.install,
        "installed": unmet.installed,
    }
    if unmet.direct and distribution in usage.distributions:
        return problem(str(unmet), fix=fix, like=PluginError, **figures)
    return warning(str(unmet), fix=fix, **figures)


def _is_core(distribution: Distribution) -> bool:
    return normalised(distribution.name) == CORE
