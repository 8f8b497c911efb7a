"""Plugins: what is installed, what of it is broken, disabled or in conflict, and what the environments hold.

Whether a fault is a problem or a warning depends on what the config uses (``_Usage``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentrl.config.models import Config
from agentrl.doctor.report import Finding, note, ok, problem, warning
from agentrl.doctor.versions import Unmet, unmet_requirements
from agentrl.environments import Environment, environments, incomplete
from agentrl.errors import PluginError
from agentrl.plugins.entries import CORE, Broken, Distribution, Entry, core_version, normalised
from agentrl.plugins.kinds import HOOKS, KINDS
from agentrl.plugins.manager import Plugins

if TYPE_CHECKING:
    from agentrl.doctor.examination import Case

__all__ = ["plugins"]


def plugins(case: Case) -> Iterator[Finding]:
    """Find what keeps plugins from being used: a problem where the config needs the plugin, else a warning."""
    installed, usage = case.plugins, _Usage.of(case.config, case.plugins)
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
    yield from _environments(case)


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
        yield note(f"{name} is disabled, but is not installed")


def _broken(broken: Broken, usage: _Usage) -> Finding:
    fix = f"update {broken.distribution.name}, or leave it out with -p no:{broken.name}"
    if usage.names(broken):
        return problem(f"{broken}", fix=fix, like=PluginError, blocks=True, plugin=broken.name)
    return warning(f"left out of the run: {broken}", fix=fix, plugin=broken.name)


def _conflict(claims: tuple[Entry, ...], usage: _Usage) -> Finding:
    first = claims[0]
    text = f"{_noun(first.kind)} {first.name} is claimed by {' and '.join(str(entry.distribution) for entry in claims)}"
    choices = [entry.qualified for entry in claims]
    fix = f"write {' or '.join(choices)}"
    if (first.kind, first.name) in usage.references:
        return problem(text, fix=fix, like=PluginError, blocks=True, references=choices)
    return warning(text, fix=f"where you mean one of them, {fix}", references=choices)


def _unmet(unmet: Unmet, distribution: Distribution, usage: _Usage) -> Finding:
    """A warning, or a problem where the config needs the plugin and the plugin declares the requirement itself.

    What a requirement needs in turn may be declared too strictly, so it is never more than a warning.
    """
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


def _environments(case: Case) -> Iterator[Finding]:
    """What each environment of ``agentrl env create`` holds, and whether it still fits this agentrl-core."""
    try:
        known, begun = environments(), incomplete()
    except PluginError as error:
        yield warning(error.message, fix=error.fix)
        return
    for environment in known:
        yield from _about_environment(environment, used=environment.python == case.config.agent.python)
    for path in begun:
        yield warning(
            f"environment {path.name} is being made, or was never finished", fix=f"agentrl env create {path.name}"
        )


def _about_environment(environment: Environment, *, used: bool) -> Iterator[Finding]:
    name = f"environment {environment.name}"
    if fault := environment.fault:
        text = f"{name} cannot be used: {fault}"
        yield (
            problem(text, fix=environment.remedy, like=PluginError, blocks=True)
            if used
            else warning(text, fix=environment.remedy)
        )
        return
    agents = [entry.name for entry in environment.entries("agents")]
    yield ok(
        f"{name}: {CORE} {environment.core}, agents {', '.join(agents) or 'none'}",
        environment=environment.name,
        core=environment.core,
        agents=agents,
    )
    if environment.core != core_version():
        yield warning(f"{name} has {CORE} {environment.core}, and this is {core_version()}", fix=environment.remedy)
    for broken in environment.broken:
        yield warning(f"{broken}, in {name}", fix=environment.remedy)


@dataclass(frozen=True, slots=True)
class _Usage:
    """What a config uses of the installed plugins."""

    references: frozenset[tuple[str, str]]
    """Kinds and names, as the config writes them."""
    entries: tuple[Entry, ...]
    """The entries that they may mean."""

    @classmethod
    def of(cls, config: Config, plugins: Plugins) -> _Usage:
        """What ``config`` uses of ``plugins``; an agent with an interpreter of its own does not count."""
        references = frozenset(_references(config))
        entries = (entry for entry in plugins.installed if plugins.disabled_by(entry) is None)
        named = (entry for entry in entries if any(k == entry.kind and entry.is_called(n) for k, n in references))
        return cls(references, tuple(named))

    @property
    def distributions(self) -> frozenset[Distribution]:
        """The distributions that the entries come from."""
        return frozenset(entry.distribution for entry in self.entries)

    def names(self, broken: Broken) -> bool:
        """Whether the config uses what is broken: an entry, or a whole distribution."""
        if broken.name == broken.distribution.name and broken.distribution in self.distributions:
            return True
        return any((entry.name, entry.distribution) == (broken.name, broken.distribution) for entry in self.entries)


def _references(config: Config) -> Iterator[tuple[str, str]]:
    if config.agent.python is None:
        yield "agents", config.agent.name
    yield "models", config.model.name
    yield "tasks", config.tasks.train.name
    if config.tasks.eval is not None:
        yield "tasks", config.tasks.eval.name
    if config.reward is not None:
        yield "rewards", config.reward.name
    yield "backends", config.inference.backend.name
    yield "algorithms", config.algorithm.name
    yield from (("trackers", tracker.name) for tracker in config.trackers)
    yield from (("normalisers", rule.name) for rule in config.gateway.normalise)
