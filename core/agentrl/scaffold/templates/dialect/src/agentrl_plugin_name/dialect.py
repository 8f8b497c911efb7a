"""The dialect ``plugin-name``: a wire protocol that agents may speak to the gateway.

What each method owes to an agent is written in ``agentrl.gateway.contract``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl import GatewayError
from agentrl.gateway.contract import (
    Completion,
    ModelRequest,
    Reply,
    Route,
    WireRequest,
)

SAMPLING = {"temperature": "temperature", "length": "max_tokens", "seed": "seed"}
"""The fields that say how to sample, and their names in chat completions."""


class PluginNameDialect:
    """``POST …/v1/plugin-name`` with a prompt; the answer holds the model's text.

    A request is ``{"prompt": "Hello.", "temperature": 1.0, "length": 16, "seed": 0}``,
    of which all but the prompt may be left out, and an answer
    ``{"id": "…", "text": "Hello!", "complete": true}``.
    """

    routes = (Route("/plugin-name"),)

    def override(
        self, body: Mapping[str, Any], override: Mapping[str, Any]
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """``override`` has the names of chat completions; those of others are kept."""
        changed = dict(body)
        for name, theirs in SAMPLING.items():
            if theirs in override:
                changed[name] = override[theirs]
        names = tuple(name for name in body if changed[name] != body[name])
        return {k: v for k, v in changed.items() if v is not None}, names

    def parse(self, request: WireRequest) -> ModelRequest | Reply:
        body = request.body
        for name in body:
            if name != "prompt" and name not in SAMPLING:
                # What cannot be honoured is refused, so that nobody relies on it.
                raise GatewayError(f"there is no field {name}", param=name)
        if not isinstance(body.get("prompt"), str):
            raise GatewayError("prompt is not a text", param="prompt")
        return ModelRequest(
            body=body,
            messages=[{"role": "user", "content": body["prompt"]}],
            fields={SAMPLING[name]: body[name] for name in body if name in SAMPLING},
        )

    def respond(
        self,
        request: WireRequest,
        asked: Sequence[ModelRequest],
        completions: Sequence[Completion],
    ) -> Reply:
        call = completions[0].call
        answer = {
            "id": call.id,
            "text": call.message.get("content") or "",
            "complete": call.finish_reason != "length",
        }
        return Reply(200, json.dumps(answer).encode())

    def refuse(self, error: GatewayError) -> Reply:
        return Reply(error.status, json.dumps({"error": str(error)}).encode())
