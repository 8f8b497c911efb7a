"""Versions: of agentrl, of Python, and of what training needs."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.specifiers import SpecifierSet

from agentrl.doctor.case import Case
from agentrl.doctor.findings import Finding, note, ok, problem, warning
from agentrl.doctor.requirements import Unmet, unmet_requirements, version_of
from agentrl.errors import PluginError
from agentrl.plugins.entries import CORE, core_version
from agentrl.plugins.references import import_target

__all__ = ["versions"]

_TRAIN = "train"
_SHOWN = ("torch", "transformers", "renderers", "openai", "httpx", "httpx2")
_IMPORTED = ("torch", "transformers", "renderers", "starlette", "uvicorn")
_PYTHON = "Programming Language :: Python :: "


def versions(case: Case) -> Iterator[Finding]:
    """Versions outside of the ranges that our own metadata declares, and packages that are missing."""
    yield from _python()
    found = {name: version for name in _SHOWN if (version := version_of(name))}
    yield ok(", ".join(f"{name} {version}" for name, version in found.items()), versions=found)
    unmet = unmet_requirements(CORE, (_TRAIN,))
    yield from _missing([each for each in unmet if each.direct and each.installed is None])
    for each in unmet:
        if each.direct and each.installed is not None:
            yield problem(str(each), fix=f"pip install '{each.install}'", like=PluginError)
        elif not each.direct:
            yield warning(str(each), fix=f"pip install '{each.install}'")
    if not any(each.direct and each.installed is None for each in unmet):
        case.doing("importing torch and transformers")
        for module in _IMPORTED:
            import_target(module)
        case.complete = True


def _python() -> Iterator[Finding]:
    mine = platform.python_version()
    system = f"{platform.system()} {platform.machine()}"
    text = f"{CORE} {core_version()} on Python {mine}, {system}"
    figures = {"core": core_version(), "python": mine, "platform": system}
    about = metadata.metadata(CORE)
    tried = [line.removeprefix(_PYTHON) for line in about.get_all("Classifier") or () if line.startswith(_PYTHON)]
    if mine not in SpecifierSet(wanted := str(about["Requires-Python"])):
        yield problem(f"{text}, and it needs Python {wanted}", fix=f"use Python {tried[-1]}", like=PluginError)
    elif tried and not any(mine.startswith(f"{version}.") for version in tried):
        yield note(f"{text}, a Python that it has not been tried with: {', '.join(tried)}", **figures)
    else:
        yield ok(text, **figures)


def _missing(unmet: list[Unmet]) -> Iterator[Finding]:
    if unmet:
        names = [each.requirement.name for each in unmet]
        yield problem(
            f"training needs what is not installed: {', '.join(names)}",
            fix=f"pip install '{CORE}[{_TRAIN}]'",
            like=PluginError,
            blocks=True,
            missing=names,
        )
