"""The guard of a server that is reached over the network: whoever does not show its key is turned away, at any path.

vLLM's own key guards what samples, and not what controls a server: its weights, and the methods of its workers. This
module imports nothing of agentrl: a copy of it runs in the server.
"""

from __future__ import annotations

import hmac
import os
from typing import Any

__all__ = ["KEY", "Guard"]

KEY = "AGENTRL_VLLM_KEY"
"""The environment variable with the key: a command line is seen by everybody on the machine."""


class Guard:
    """ASGI middleware that asks every request for ``Authorization: Bearer KEY``."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ[KEY]}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            shown = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(shown, self._expected):
                await _refuse(scope, send)
                return
        await self._app(scope, receive, send)


async def _refuse(scope: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = b'{"error": {"message": "this server asks for its key", "code": 401}}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
