"""The dialect ``plugin-name``: a wire protocol that agents may speak to the gateway.

What each method owes to an agent is written in ``agentrl.gateway.contract``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from agentrl import GatewayError
from agentrl.gateway.contract import (
    Completion,
    Event,
    ModelRequest,
    Reply,
    Route,
    WireRequest,
)

SAMPLING = {"temperature": "temperature", "length": "max_tokens", "seed": "seed"}
"""The fields that say how to sample, and their names in chat completions."""


FIELDS: Mapping[str, Any] = {
    "prompt": {"type": "string"},
    "temperature": {"type": "number", "minimum": 0},
    "length": {"type": "integer", "minimum": 1},
    "seed": {"type": "integer"},
    "stream": {"type": "boolean"},
}
"""The fields of a request, as JSON schemas."""


class PluginNameDialect:
    """``POST …/v1/plugin-name`` with a prompt; the answer holds the model's text.

    A request is ``{"prompt": "Hello.", "temperature": 1.0, "length": 16, "seed": 0}``,
    of which all but the prompt may be left out, and an answer
    ``{"id": "…", "text": "Hello!", "complete": true}``. With ``"stream": true`` lines
    ``{"text": "Hel"}`` come while the model writes, and at the end one with the rest.
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
            if name not in FIELDS:
                # What cannot be honoured is refused, so that nobody relies on it.
                raise GatewayError(f"there is no field {name}", param=name)
        if not isinstance(body.get("prompt"), str):
            raise GatewayError("prompt is not a text", param="prompt")
        if not isinstance(body.get("stream", False), bool):
            raise GatewayError("stream is neither true nor false", param="stream")
        return ModelRequest(
            body=body,
            messages=[{"role": "user", "content": body["prompt"]}],
            fields={SAMPLING[name]: body[name] for name in body if name in SAMPLING},
            stream=body.get("stream", False),
        )

    def respond(
        self,
        request: WireRequest,
        asked: Sequence[ModelRequest],
        completions: Sequence[Completion],
    ) -> Reply:
        text = completions[0].call.message.get("content") or ""
        return Reply(200, json.dumps({"text": text, **end(completions[0])}).encode())

    def stream(
        self,
        request: WireRequest,
        asked: Sequence[ModelRequest],
        events: AsyncIterator[Event],
    ) -> Reply:
        return Reply(200, lines(events), {"content-type": "application/jsonl"})

    def refuse(self, error: GatewayError) -> Reply:
        return Reply(error.status, json.dumps({"error": str(error)}).encode())

    def describe(self) -> Mapping[str, Any]:
        """Its part of the OpenAPI document at ``GET /openapi.json``."""
        answer = {
            "id": {"type": "string"},
            "text": {"type": "string"},
            "complete": {"type": "boolean"},
        }
        asked = {
            "type": "object",
            "properties": dict(FIELDS),
            "required": ["prompt"],
            "additionalProperties": False,
        }
        error = {"type": "object", "properties": {"error": {"type": "string"}}}
        answered = json_content({"type": "object", "properties": answer})
        lines = {"application/jsonl": {"schema": {"type": "string"}}}
        operation = {
            "summary": "Answer a prompt",
            "requestBody": {"required": True, "content": json_content(asked)},
            "responses": {
                "200": {"description": "The answer.", "content": {**answered, **lines}},
                "default": {
                    "description": "A refusal.",
                    "content": json_content(error),
                },
            },
        }
        return {"paths": {"/plugin-name": {"post": operation}}}


def json_content(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def end(completion: Completion) -> dict[str, Any]:
    """What an answer holds beside its text."""
    call = completion.call
    return {"id": call.id, "complete": call.finish_reason != "length"}


async def lines(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    """The lines of a streamed answer: texts, then its end, or what broke it off."""
    try:
        async for event in events:
            if isinstance(event, Completion):
                yield json.dumps(end(event)).encode() + b"\n"
            elif event.content:
                yield json.dumps({"text": event.content}).encode() + b"\n"
    except GatewayError as error:
        yield json.dumps({"error": str(error)}).encode() + b"\n"
