"""The chat completions API in front of an endpoint that speaks it too: requests go through as they were written.

But for a seed, in which the episode's is mixed: as it is it would make all samples of a task the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentrl.errors import GatewayError, shown
from agentrl.gateway.dialects.chat_api import PATH, error_body, refuse_several
from agentrl.gateway.dialects.overrides import apply_override, check_override
from agentrl.gateway.request import Completion, ModelRequest

__all__ = ["RelayedChat"]


class RelayedChat:
    """Reads of a request what recording it needs; the endpoint judges the rest."""

    path = PATH

    def override(self, body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """See ``Dialect.override``."""
        return apply_override(body, override)

    @classmethod
    def check_override(cls, override: Mapping[str, Any]) -> None:
        """Raise ``ConfigError`` for an override under which no call could be answered."""
        check_override(override, _read)

    def parse(self, body: Mapping[str, Any]) -> ModelRequest:
        """See ``Dialect.parse``."""
        return _read(body)

    def respond(self, request: ModelRequest, completion: Completion) -> bytes:
        """See ``Dialect.respond``: what the endpoint answered, under the id that the call has here.

        Ids of an endpoint need not be unique, and agents reward single calls by theirs.
        """
        return json.dumps({**completion.answer, "id": completion.call.id}).encode()

    def refuse(self, error: GatewayError) -> bytes:
        """See ``Dialect.refuse``."""
        return error_body(error)


def _read(body: Mapping[str, Any]) -> ModelRequest:
    refuse_several({name: value for name, value in body.items() if value is not None})
    messages, tools = body.get("messages"), body.get("tools")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise GatewayError(
            f"messages is not a list of messages: {shown(messages, 80)}", param="messages", code="invalid_value"
        )
    return ModelRequest(body=body, messages=messages, tools=tools if isinstance(tools, list) else None)
