"""The HTTP client that all inline episodes share, looked at from outside."""

from __future__ import annotations

from typing import Any

from agentrl.gateway import Gateway, SessionSettings

__all__ = ["ask_alone", "settings_of"]


def settings_of(client: Any) -> dict[str, object]:
    """What a client adds to every request that goes through it."""
    return {
        "headers": sorted(client.headers.multi_items()),
        "base_url": str(client.base_url),
        "timeout": repr(client.timeout),
        "cookies": sorted(client.cookies.items()),
        "auth": client.auth,
        "event_hooks": {event: list(hooks) for event, hooks in client.event_hooks.items()},
        "closed": client.is_closed,
    }


async def ask_alone(gateway: Gateway) -> str | None:
    """What the model answers to somebody else who uses the client."""
    from openai import AsyncOpenAI

    session = gateway.open_session(SessionSettings(training=True))
    try:
        client = AsyncOpenAI(
            base_url=session.base_url, api_key=session.api_key, http_client=gateway.http_client(), max_retries=0
        )
        reply = await client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "Hello"}])
        return reply.choices[0].message.content
    finally:
        session.close()
