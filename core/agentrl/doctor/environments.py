"""The environments that ``agentrl env create`` has made, as an examination sees them."""

from __future__ import annotations

from collections.abc import Iterator

from agentrl.doctor.case import Case
from agentrl.doctor.findings import Finding, ok, problem, warning
from agentrl.environments import Environment, environments, incomplete
from agentrl.errors import PluginError
from agentrl.plugins.entries import CORE, core_version

__all__ = ["known_environments"]


def known_environments(case: Case) -> Iterator[Finding]:
    """What each holds, and whether it still fits."""
    try:
        known, begun = environments(), incomplete()
    except PluginError as error:
        yield warning(error.message, fix=error.fix)
        return
    for environment in known:
        yield from _about(environment, used=environment.python == case.config.agent.python)
    for path in begun:
        yield warning(
            f"environment {path.name} is being made, or was never finished", fix=f"agentrl env create {path.name}"
        )


def _about(environment: Environment, *, used: bool) -> Iterator[Finding]:
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
