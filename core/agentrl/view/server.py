"""The pages as a server of this machine, from the port that it takes to the Ctrl-C that ends it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError
from agentrl.view.security import is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = ["address_of", "check_exposure", "serve"]

_SHORTEST = 16
"""Fewest characters of a token: with a shorter one, somebody who tries them all may come to the end."""
_STOP_S = 1
"""Seconds that requests have to come to their end once the server is stopped."""


def check_exposure(host: str, token: str | None) -> None:
    """Raise ``ConfigError`` where others could read the pages at ``host`` unasked, or guess the ``token``."""
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} would show every episode to whoever reaches this machine",
            fix="add --token auto; or leave --host out, and forward the port: ssh -L 8000:127.0.0.1:PORT",
        )
    if token is not None and (len(token) < _SHORTEST or not token.isascii() or not token.isprintable()):
        raise ConfigError(
            f"the token has to be at least {_SHORTEST} printable ASCII characters, and has {len(token)} characters",
            fix="--token auto makes one",
        )


def address_of(host: str, listener: socket.socket) -> str:
    """Where a browser finds what listens at ``host``, without a path: one of another machine, where that is open."""
    port = listener.getsockname()[1]
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        host = socket.gethostname() if address.is_unspecified else f"[{host}]" if address.version == 6 else host
    return f"http://{host}:{port}"


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve ``app`` until the process is interrupted or terminated. Requests are not logged: they may hold a token."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_STOP_S,
    )
    with contextlib.suppress(KeyboardInterrupt):  # It is how this ends.
        uvicorn.Server(config).run(sockets=[listener])
