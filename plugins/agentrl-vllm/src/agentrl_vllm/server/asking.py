"""Small questions to a server, beside the requests that sample."""

from __future__ import annotations

from typing import Any

import httpx

from agentrl.errors import BackendError, one_line

__all__ = ["answers", "ask", "client"]


def client(url: str, seconds: float) -> httpx.AsyncClient:
    """A client for ``url``; a proxy is never between us and this machine."""
    local = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
    return httpx.AsyncClient(base_url=url, timeout=seconds, trust_env=not local, verify=not local)


async def answers(url: str, path: str, seconds: float = 5.0) -> bool:
    """Whether ``GET path`` is a success within ``seconds``."""
    async with client(url, seconds) as asking:
        try:
            return (await asking.get(path)).is_success
        except httpx.HTTPError:
            return False


async def ask(url: str, method: str, path: str, json: Any = None, seconds: float = 30.0) -> httpx.Response:
    """The answer to one request, whatever its status. Raises ``BackendError`` where none comes."""
    async with client(url, seconds) as asking:
        try:
            return await asking.request(method, path, json=json)
        except httpx.HTTPError as error:
            reason = one_line(error) or type(error).__name__
            raise BackendError(f"the server at {url} does not answer {path}: {reason}", fix="does it run?") from error
