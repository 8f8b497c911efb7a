"""Ports of the loopback interface."""

from __future__ import annotations

import socket

__all__ = ["LOOPBACK", "free_port", "is_free"]

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on. Somebody may before its user does: then another has to be tried."""
    with socket.socket() as bound:
        bound.bind((LOOPBACK, 0))
        port: int = bound.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port``."""
    with socket.socket() as attempt:
        # As servers do: connections of an earlier one that are not quite forgotten are in nobody's way.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
