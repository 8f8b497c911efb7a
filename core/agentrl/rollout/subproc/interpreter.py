"""The interpreter that runs an agent: which one, in which environment, and why it cannot run agents."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

from agentrl.clients import direct_loopback
from agentrl.environ import DISABLE_PLUGINS, WORKER
from agentrl.environments.environment import environment_of, environments
from agentrl.environments.sources import core_source
from agentrl.errors import ConfigError, PluginError, near_matches
from agentrl.loops import run_in_thread
from agentrl.plugins.entries import CORE, OLDEST_PYTHON, core_version
from agentrl.rollout.contract import AgentSpec
from agentrl.worker.protocol import PROTOCOL

__all__ = ["AgentLaunch", "diagnose", "update_fix", "usable_interpreter", "worker_environment", "wrong_protocol"]

ENDPOINT_VARIABLES = (
    *("OPENAI_BASE_URL", "OPENAI_API_KEY"),
    *("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
)
"""Variables that the worker sets itself: an agent that reads them reaches its own episode."""

_HARMLESS = (
    # who and where
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "TMPDIR", "TEMP", "TMP", "XDG_*"),
    # language and time
    *("LANG", "LANGUAGE", "LC_*", "TZ"),
    # certificates; where the network is reached directly
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NO_PROXY", "no_proxy"),
    # shared libraries
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_*"),
    # how Python behaves, whichever it is
    *("PYTHONHASHSEED", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONWARNINGS", "PYTHONDEVMODE", "PYTHONFAULTHANDLER"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONMALLOC"),
    # how many threads, which devices
    *("OMP_*", "MKL_*", "OPENBLAS_NUM_THREADS", "NUMEXPR_*", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM"),
    *("CUDA_HOME", "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    *("ROCR_VISIBLE_DEVICES", "MALLOC_*"),
    # where downloads are kept, and whether there may be any
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
    *("TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE", "TIKTOKEN_CACHE_DIR", "NLTK_DATA", "DO_NOT_TRACK"),
    DISABLE_PLUGINS,
)
_OF_THIS_INTERPRETER = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX")
"""Variables that would lead another interpreter to the packages of this one."""

_DEADLINE_S = 20.0
_QUESTION = """
import sys
sys.path[:] = filter(None, sys.path)  # The current folder may hold a json.py, and old Pythons have no -P.
import json
from importlib.util import find_spec
core = find_spec("agentrl") is not None
print(json.dumps({
    "agentrl interpreter": list(sys.version_info[:3]),
    "core": core,
    "worker": core and find_spec("agentrl.worker") is not None,
}))
"""


@dataclass(frozen=True, slots=True)
class AgentLaunch:
    """What a worker process is started from: the agent, the interpreter and the environment."""

    reference: str
    """A registered name, ``dist/name``, ``pkg.mod:Obj`` or ``file.py:Obj``, resolved where it runs."""
    kwargs: Mapping[str, Any]
    """``agent.kwargs`` of the config; plain JSON."""
    python: Path
    """The interpreter. A link is not followed: in a virtual environment it is one."""
    env: Mapping[str, str] = field(repr=False)
    """All environment variables of the process; see ``worker_environment``."""
    disabled: tuple[str, ...] = ()
    """Names of plugins that the worker does not use."""
    outcomes: tuple[str, ...] = ()
    """``agent.outcomes`` of the config."""

    @classmethod
    def of(cls, agent: AgentSpec, by: str = "another process") -> Self:
        """What ``agent`` is started from in this machine's environment.

        Raises ``ConfigError`` for an agent without a reference, which ``by`` cannot find, and for ``agent.env``.
        """
        if agent.reference is None:
            raise ConfigError(
                f"{agent.name!r} cannot be found by {by}: it is no class or function at the top of a module",
                fix="pass one that is, or its reference pkg.mod:Obj or file.py:Obj, or use rollout.mode=inline",
            )
        python = Path(sys.executable) if agent.python is None else Path(os.path.expanduser(agent.python))
        return cls(
            reference=agent.reference,
            kwargs=agent.kwargs,
            python=python,
            env=worker_environment(agent.env, os.environ, python=python),
            disabled=agent.disabled,
            outcomes=agent.outcomes,
        )


def worker_environment(
    listed: Sequence[str], environ: Mapping[str, str], *, python: Path | None = None
) -> dict[str, str]:
    """The environment of an agent's process: harmless variables of ``environ``, and those ``listed`` in ``agent.env``.

    Nothing else of this process's environment is passed: what an agent's code can read it can also send somewhere.
    ``python`` is the interpreter that will run the agent, by default this one. Raises ``ConfigError`` for an entry
    that is neither ``NAME`` of a variable that exists here nor ``NAME=value``, or that is ours to set.
    """
    own = python is None or python == Path(sys.executable)
    harmless = (*_HARMLESS, *(_OF_THIS_INTERPRETER if own else ()))
    variables = {name: value for name, value in environ.items() if _is_one_of(name, harmless)}
    variables |= {"PYTHONUNBUFFERED": "1"} | dict(_listed(listed, environ))
    return variables | direct_loopback(variables)


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listed(entries: Sequence[str], environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for entry in entries:
        name, given, value = entry.partition("=")
        _check(name, entry, seen)
        seen.add(name)
        if not given and name not in environ:
            raise ConfigError(
                f"agent.env lists {name!r}, which is not set here",
                fix=f"set {name} before you start, or write {name}=value in agent.env",
            )
        yield name, value if given else environ[name]


def _check(name: str, entry: str, seen: set[str]) -> None:
    if name.split() != [name] or "\0" in entry:
        raise ConfigError(f"agent.env holds {entry!r}, which names no variable", fix="write NAME or NAME=value")
    if name in (*ENDPOINT_VARIABLES, WORKER):
        raise ConfigError(
            f"agent.env lists {name!r}, which is agentrl's to set: it leads the agent to its own episode",
            fix=f"take {name} out of agent.env; a model other than the policy needs a variable of another name",
        )
    if name in seen:
        raise ConfigError(f"agent.env lists {name!r} twice", fix="keep one of the two")


def usable_interpreter(python: Path) -> Path:
    """``python`` as an absolute or relative path that can be started; raises ``PluginError`` where it cannot be."""
    path = Path(os.path.expanduser(python))
    if path.is_dir():
        inside = path / "bin" / "python"
        fix = f"set agent.python={inside}" if inside.exists() else "set agent.python to the interpreter itself"
        raise PluginError(f"agent.python={python} is a folder, not an interpreter", fix=fix)
    if not path.exists():
        raise PluginError(f"agent.python={python} does not exist", fix=_instead_of(path))
    if shutil.which(path.absolute()) is None:
        raise PluginError(f"agent.python={python} is not executable", fix=f"chmod +x {path}, or choose an interpreter")
    return path


def _instead_of(path: Path) -> str:
    """A suggestion for an interpreter that does not exist: a command of that name, or one of the environments."""
    if path.is_absolute():
        return "set agent.python to the path of a Python interpreter"
    if found := shutil.which(str(path)):
        return f"set agent.python={found}"
    name = str(path)
    known = [environment.name for environment in environments()]
    if os.sep not in name and known:
        return f"environments: {near_matches(name, known)}; or set agent.python to the path of a Python interpreter"
    return "set agent.python to the path of a Python interpreter, or to an environment that agentrl env create makes"


async def diagnose(process: AgentLaunch, how: str) -> PluginError:
    """The error of a process that ended before its agent was loaded; ``how`` says how it ended."""
    facts = await run_in_thread(_ask, process)
    python = process.python
    if facts is None:
        return PluginError(f"{python} is no Python interpreter: it {how}", fix="set agent.python to one")
    version = tuple(facts["agentrl interpreter"])
    if version < OLDEST_PYTHON:
        return PluginError(
            f"{python} is Python {_dotted(version)}, and agents run on Python {_dotted(OLDEST_PYTHON)} or later",
            fix="set agent.python to a later one",
        )
    if not facts["core"]:
        return PluginError(f"{python} has no {CORE}", fix=update_fix(process))
    if not facts["worker"]:
        return PluginError(f"{python} has an {CORE} that is too old to run agents", fix=update_fix(process))
    return PluginError(
        f"the process of agent {process.reference!r} did not get as far as its first episode: it {how}",
        fix=f"see what importing the agent does in {python}",
    )


def wrong_protocol(process: AgentLaunch, hello: Mapping[str, Any]) -> PluginError:
    """The error of a worker that speaks another version of the protocol, as its ``hello`` says."""
    theirs, ours = hello.get("core") or "of unknown version", core_version()
    return PluginError(
        f"{process.python} has {CORE} {theirs}, whose worker speaks protocol {hello.get('protocol')}; "
        f"{CORE} {ours} here speaks {PROTOCOL}",
        fix=update_fix(process),
    )


def update_fix(process: AgentLaunch) -> str:
    """The command that installs this version of agentrl-core for the interpreter."""
    known = environment_of(process.python)
    if known is not None:
        return known.remedy
    core = core_source()
    if core.folder is not None:
        return f"{process.python} -m pip install --force-reinstall {shlex.quote(str(core.folder))}"
    return f"{process.python} -m pip install '{CORE}=={core_version()}'"


def _ask(process: AgentLaunch) -> dict[str, Any] | None:
    """What the interpreter reports about itself; ``None`` where it is no Python interpreter."""
    try:
        answer = subprocess.run(  # noqa: S603
            [os.path.expanduser(process.python), "-c", _QUESTION],
            env=process.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_DEADLINE_S,
        )
        facts = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None
    return facts if isinstance(facts, dict) and "agentrl interpreter" in facts else None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
