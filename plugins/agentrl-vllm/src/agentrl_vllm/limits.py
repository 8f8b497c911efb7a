"""What the operating system allows this process: each request under way has a connection of its own."""

from __future__ import annotations

import contextlib
import errno
import resource

from agentrl.errors import BackendError

__all__ = ["allow_open_files", "limit_reached"]

_MOST = 65536
_REACHED = {
    errno.EMFILE: "raise `ulimit -n`, or lower rollout.concurrency",
    errno.ENFILE: "raise fs.file-max of this machine, or lower rollout.concurrency",
    errno.EADDRNOTAVAIL: "lower rollout.concurrency: all local ports to that server are in use",
}


def allow_open_files() -> None:
    """Raise the soft limit of open files as far as the hard one lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # Some systems have a lower one that they do not tell.
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit_reached(error: OSError, what: str) -> BackendError | None:
    """The error for an ``error`` that no server has to answer for; ``None`` for any other."""
    if error.errno not in _REACHED:
        return None
    return BackendError(f"this process cannot connect to {what}: {error.strerror}", fix=_REACHED[error.errno])
