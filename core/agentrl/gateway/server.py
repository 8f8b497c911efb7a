"""The HTTP server: the application on a thread of its own."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

from agentrl.errors import RunError
from agentrl.gateway.connections import Limits, guarded
from agentrl.gateway.credentials import redact_log
from agentrl.gateway.exchange import Service
from agentrl.loops import AwakeClock, Ticker

if TYPE_CHECKING:
    import uvicorn

__all__ = ["DEFAULT_LIMITS", "Server"]

DEFAULT_LIMITS = Limits()

DEADLINE_S = 30.0
"""How long the server may take to start, or to end what it is doing."""

_BACKLOG = 4096
_HEADER_ROOM = 2**20
"""What h11 takes of a header before it finds it too long itself: more than comes at once beyond our own limit."""


class Server:
    """Serves on a free port of the loopback interface, from a thread with an event loop of its own: an
    agent that blocks its loop does not block the others' calls."""

    def __init__(self, service: Service, limits: Limits = DEFAULT_LIMITS, clock: AwakeClock | None = None) -> None:
        """By ``clock`` the limits are kept; a pause of the process is no client's time."""
        self._service = service
        self._limits = limits
        self._clock = clock or AwakeClock()
        self._ticker: Ticker | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.url: str | None = None
        """Where it serves; ``None`` while it does not."""

    def start(self) -> None:
        """Serve. Raises ``RunError`` if that does not come about in time."""
        if self._thread is not None:
            return
        listener = _listener()
        self._server = server = self._made()
        self._thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="agentrl-gateway", daemon=True
        )
        self._thread.start()
        self._ticker = Ticker(self._clock)
        self._wait_until_started(server, self._thread)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def _made(self) -> uvicorn.Server:
        # Where it is used: a light install has neither, and runs agents for somebody else's gateway.
        import uvicorn
        from uvicorn.protocols.http.auto import AutoHTTPProtocol

        from agentrl.gateway.http import application

        for name in ("uvicorn.access", "uvicorn.asgi", "uvicorn.error"):
            redact_log(name)
        made: list[uvicorn.Server] = []
        protocol = guarded(
            AutoHTTPProtocol,
            self._limits,
            refusal=self._service.refusal,
            stopping=lambda: made[0].should_exit,
            now=self._clock.time,
        )
        config = uvicorn.Config(
            application(self._service, self._limits),
            http=protocol,
            log_config=None,
            lifespan="off",
            ws="none",
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=int(self._limits.stop_s) + 1,
            timeout_keep_alive=self._limits.idle_s,
            h11_max_incomplete_event_size=self._limits.header_bytes + _HEADER_ROOM,
        )
        made.append(uvicorn.Server(config))
        return made[0]

    def _wait_until_started(self, server: uvicorn.Server, thread: threading.Thread) -> None:
        pause = threading.Event()
        for _ in range(int(DEADLINE_S / 0.01)):
            if server.started:
                return
            if not thread.is_alive():
                break
            pause.wait(0.01)
        raise RunError(f"the gateway's HTTP server did not start within {DEADLINE_S:g} s")

    def stop(self) -> None:
        """End the server and its thread. Raises ``RunError`` if it does not end in time; safe to call twice."""
        server, thread = self._server, self._thread
        self._server = self._thread = self.url = None
        if server is None or thread is None:
            return
        if self._ticker is not None:
            self._ticker.stop()
        server.should_exit = True
        thread.join(DEADLINE_S)
        if thread.is_alive():
            server.force_exit = True
            raise RunError(f"the gateway's HTTP server did not end within {DEADLINE_S:g} s")


def _listener() -> socket.socket:
    """A socket that listens on a free port of this machine.

    Its protocol is named: on what a listener of protocol 0 accepts, asyncio sets no TCP_NODELAY, and every answer
    after a connection's first then waits for the client's delayed acknowledgement of its header.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.bind(("127.0.0.1", 0))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
