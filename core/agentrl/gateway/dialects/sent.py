"""The conversation in a recorded request, for people and for comparisons, whichever protocol it came in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrl.errors import GatewayError
from agentrl.gateway.dialects.responses.items import Conversation

__all__ = ["sent_messages"]

Message = Mapping[str, Any]


def sent_messages(request: Mapping[str, Any]) -> list[Message]:
    """The messages in ``Call.request``, each with a role; those of the system first, wherever the protocol has them.

    What a request only refers to, such as an earlier response, is not among them. Empty for a protocol of a plugin.
    """
    if isinstance(messages := request.get("messages"), list):
        return [*_system(request.get("system")), *messages]
    if isinstance(prompt := request.get("prompt"), str):
        return [{"role": "user", "content": prompt}]
    asked = request.get("input")
    if isinstance(asked, str):
        return [*_system(request.get("instructions")), {"role": "user", "content": asked}]
    if not isinstance(asked, list):
        return []
    conversation = Conversation(lambda call: None, lambda handle: "")
    try:
        conversation.add([item for item in asked if not isinstance(item, dict) or item.get("type") != "item_reference"])
    except GatewayError:  # Of another protocol than the Responses API.
        return []
    return [*_system(request.get("instructions")), *conversation.end()]


def _system(text: object) -> list[Message]:
    return [{"role": "system", "content": text}] if text else []
