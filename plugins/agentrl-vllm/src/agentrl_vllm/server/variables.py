"""The environment of a server: harmless variables of ours, what it needs, and what the user lists."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from agentrl.errors import ConfigError
from agentrl.rollout.subproc.variables import worker_environment

__all__ = ["server_environment"]

_HARMLESS = ("NCCL_*", "GLOO_*", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")

_NEEDED = {
    # The endpoints that take new weights.
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # The model is a local folder.
    "HF_HUB_OFFLINE": "1",
    # A connection that the server closes as a request is on its way looks like a server that is lost.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "86400",
    # On a CPU: the operating system shares the cores among replicas and trainer.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def server_environment(listed: Sequence[str], environ: Mapping[str, str], python: Path) -> dict[str, str]:
    """What a server that ``python`` runs gets of ``environ``; nothing secret that ``listed`` does not name.

    Raises ``ConfigError`` for an entry of ``listed`` that is neither ``NAME=value`` nor ``NAME`` of a variable here.
    """
    more = {name: value for name, value in environ.items() if any(fnmatchcase(name, each) for each in _HARMLESS)}
    ours = {**_NEEDED, "TORCHINDUCTOR_CACHE_DIR": _compiled()}
    return {**worker_environment((), environ, python=python), **ours, **more, **dict(_listed(listed, environ))}


def _compiled() -> str:
    """Where torch keeps what it has compiled: not in the server's own folder, so that the next one finds it."""
    return str(Path(tempfile.gettempdir()) / f"agentrl-torchinductor-{os.getuid()}")


def _listed(entries: Sequence[str], environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        name, given, value = entry.partition("=")
        if name.split() != [name] or "\0" in entry:
            raise ConfigError(
                f"inference.backend.env holds {entry!r}, which names no variable", fix="write NAME or NAME=value"
            )
        if not given and name not in environ:
            raise ConfigError(
                f"inference.backend.env lists {name!r}, which is not set here",
                fix=f"set {name} before you start, or write {name}=value",
            )
        yield name, value if given else environ[name]
