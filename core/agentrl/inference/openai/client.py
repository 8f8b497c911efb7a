"""The SDK's client of an endpoint, which is sent what is meant for it and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentrl.clients import client_library
from agentrl.inference.openai.endpoint import Endpoint

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["CONNECT_S", "make_client"]

CONNECT_S = 10.0
"""How long a connection may take to be made."""
_OF_ANY_REQUEST = frozenset(
    {
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
        "user-agent",
    }
)


def make_client(endpoint: Endpoint, timeout: float) -> AsyncOpenAI:
    """A client whose calls may take ``timeout`` seconds; call it in the loop that uses it."""
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    library = client_library()
    limit = library.Timeout(timeout, connect=CONNECT_S)
    # The limit is `rollout.concurrency`: a smaller pool would be a second one, that nobody has set.
    limits = library.Limits(max_connections=None, max_keepalive_connections=None)
    hooks = {} if endpoint.is_openai else {"request": [_leave_out_what_is_openai_s]}
    return AsyncOpenAI(
        base_url=endpoint.url,
        api_key=endpoint.key,
        default_headers={"Authorization": f"Bearer {endpoint.key}"},
        http_client=DefaultAsyncHttpxClient(timeout=limit, limits=limits, event_hooks=hooks),
        timeout=limit,
    )


async def _leave_out_what_is_openai_s(request: Any) -> None:
    """The SDK adds headers that its environment variables hold for OpenAI: organisation, project and any others."""
    for name in list(request.headers):
        if name not in _OF_ANY_REQUEST and not name.startswith("x-stainless-"):
            del request.headers[name]
