"""Which environment variables an agent's process gets: harmless ones, and those that ``agent.env`` lists.

Everything else of this process stays here: what an agent's code could read, it could also send somewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from agentrl.clients import direct_loopback
from agentrl.environ import DISABLE_PLUGINS, WORKER
from agentrl.errors import ConfigError

__all__ = ["OURS", "worker_environment"]

OURS = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY")
"""What the worker itself sets: an agent that reads them reaches its own episode."""

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
"""What would lead another interpreter to the packages of this one."""


def worker_environment(
    listed: Sequence[str], environ: Mapping[str, str], *, python: Path | None = None
) -> dict[str, str]:
    """The variables of an agent's process: of ``environ`` the harmless ones, and those ``listed`` in ``agent.env``.

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
    if name in (*OURS, WORKER):
        raise ConfigError(
            f"agent.env lists {name!r}, which is agentrl's to set: it leads the agent to its own episode",
            fix=f"take {name} out of agent.env; a model other than the policy needs a variable of another name",
        )
    if name in seen:
        raise ConfigError(f"agent.env lists {name!r} twice", fix="keep one of the two")
