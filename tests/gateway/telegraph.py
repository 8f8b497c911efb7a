"""A wire protocol of a plugin: a text in a JSON object goes in, and its answer comes back word by word."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from agentrl.errors import GatewayError
from agentrl.gateway.contract import Completion, ModelRequest, Reply, Route, WireRequest

GATE = threading.Event()
"""Closed, it holds back all but the first word of an answer."""


class Telegraph:
    """Keeps the contract of a dialect, and imports nothing but contracts."""

    routes = (Route("/telegraph"), Route("/offices/{office}/{line:path}", ("GET",)))

    def override(self, body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        return {**body, **override}, tuple(sorted(override))

    def parse(self, request: WireRequest) -> ModelRequest | Reply:
        if request.route is self.routes[1]:
            parts = [json.dumps({**request.parameters, "agent": request.headers["user-agent"]}).encode(), b"\n"]
            return Reply(200, parts)
        for name in request.body:
            if name != "text":
                raise GatewayError(f"{name} is no field of a telegram", param=name, code="no_field")
        if not isinstance(text := request.body.get("text"), str):
            raise GatewayError("there is no text", code="no_text")
        if text == "a fault":
            raise ZeroDivisionError("a fault of the plugin")
        fields = {"temperature": float(request.headers["x-heat"])} if "x-heat" in request.headers else {}
        return ModelRequest(request.body, [{"role": "user", "content": text}], fields=fields)

    def respond(self, request: WireRequest, asked: Sequence[ModelRequest], completions: Sequence[Completion]) -> Reply:
        words = [f"{word} ".encode() for word in str(completions[0].call.message["content"]).split()]
        body = self._one_by_one(words) if "x-one-by-one" in request.headers else self._slowly(words, request)
        return Reply(200, body, {"content-type": "text/telegram", "x-words": str(len(words))})

    def _one_by_one(self, words: list[bytes]) -> Iterator[bytes]:
        yield from [*words, b"STOP"]

    async def _slowly(self, words: list[bytes], request: WireRequest) -> AsyncIterator[bytes]:
        for word in words[:1]:
            yield word
        while not GATE.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if "x-break" in request.headers:
            raise ZeroDivisionError("the line broke")
        for word in words[1:]:
            yield word
        yield b"STOP"

    def refuse(self, error: GatewayError) -> Reply:
        if error.code == "no_text":
            raise ZeroDivisionError("nor can it say so")
        refused = f"REFUSED {error.status} {error}".encode("utf-8", "replace")
        return Reply(error.status, refused, {"content-type": "text/telegram"})

    def describe(self) -> Mapping[str, Any]:
        written = {"text/telegram": {"schema": {"type": "string"}}}
        telegram = {
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "required": ["text"],
            "additionalProperties": False,
        }
        send = {
            "summary": "Send a telegram",
            "requestBody": {"required": True, "content": {"application/json": {"schema": telegram}}},
            "responses": {
                "200": {"description": "The answer.", "content": written},
                "default": {"description": "A refusal.", "content": written},
            },
        }
        line = {"summary": "Find a line", "responses": {name: send["responses"][name] for name in ("200", "default")}}
        return {"paths": {"/telegraph": {"post": send}, "/offices/{office}/{line}": {"get": line}}}
