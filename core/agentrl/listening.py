"""The socket that a server of ours listens at."""

from __future__ import annotations

import errno
import socket

from agentrl.errors import ConfigError

__all__ = ["listen"]

_BACKLOG = 4096
"""Connections that may wait to be accepted."""


def listen(host: str, port: int, *, what: str, other_port: str, other_host: str) -> socket.socket:
    """Return a socket that listens at an address of this machine; port 0 is a free one.

    Raises ``ConfigError``, which says that ``what`` cannot be served there, with the fix ``other_port`` where the port
    is taken and ``other_host`` else.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Its protocol is named because asyncio sets TCP_NODELAY only then. Without it, every answer after a
        # connection's first waits for the client's delayed acknowledgement of its header.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if port:  # A port that was asked for is free again as soon as its last server has ended.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"{what} cannot be served at {host}, port {port}: {error.strerror or error}",
            fix=other_port if error.errno == errno.EADDRINUSE else other_host,
        ) from error
    return listener
