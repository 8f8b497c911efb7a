"""Locks between processes, on files."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["acquired"]

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


def acquired(lock: BaseFileLock, seconds: float = 0.0) -> bool:
    """Acquire ``lock``, waiting at most ``seconds``; returns whether it is held.

    It is not where the file system has no locks. Raises filelock's ``Timeout`` where another process holds it, and
    ``OSError`` where its file cannot be written.
    """
    try:
        lock.acquire(timeout=seconds, poll_interval=0.02)
    except NotImplementedError:  # What some versions of filelock raise for such a file system.
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True
