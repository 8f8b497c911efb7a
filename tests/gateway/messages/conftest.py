"""Anthropic's own SDK, connected in every way there is, and what its streams are put together to."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import anthropic
import httpx2
import pytest
from tests.gateway.conftest import Connection

from agentrl.gateway import Gateway, Session

ASK = [{"role": "user", "content": "What is 12 * 34?"}]
TOOLS = [{"name": "calculate", "description": "Calculates.", "input_schema": {"type": "object"}}]
CALL = '<tool_call>\n{"name": "calculate", "arguments": {"n": 12}}\n</tool_call>'
WAYS = ["whole", "create(stream=True)", "stream()"]
SYNC = [f"sync {way}" for way in WAYS]


@dataclass
class Caller:
    """A client of the SDK, connected in one way, that asks in one way."""

    gateway: Gateway
    in_process: bool
    way: str
    beta: bool = False

    def client(self, session: Session, **options: object) -> anthropic.AsyncAnthropic:
        """An ``AsyncAnthropic`` as an agent would make it."""
        http_client = Connection(self.gateway, httpx2, self.in_process).http_client()
        fields = {"base_url": session.base_url, "api_key": session.api_key, "http_client": http_client}
        return anthropic.AsyncAnthropic(**(fields | {"max_retries": 0} | options))

    def ask(self, session: Session, messages: object = ASK, **fields: object) -> anthropic.types.Message:
        """The message that the model answers, as the SDK gives it."""
        asked = {"model": "any", "max_tokens": 500, "messages": messages} | fields
        if self.way.startswith("sync "):
            return self._ask_sync(session, asked)

        async def run() -> anthropic.types.Message:
            async with self.client(session) as client:
                api = client.beta.messages if self.beta else client.messages
                if self.way == "whole":
                    return await api.create(**asked)
                if self.way == "stream()":
                    async with api.stream(**asked) as stream:
                        return await stream.get_final_message()
                stream = await api.create(**asked, stream=True)
                return assembled([event async for event in stream])

        return asyncio.run(run())

    def _ask_sync(self, session: Session, asked: dict) -> anthropic.types.Message:
        http_client = httpx2.Client(verify=False)
        fields = {"base_url": session.base_url, "api_key": session.api_key, "http_client": http_client}
        with anthropic.Anthropic(**fields, max_retries=0) as client:
            api = client.beta.messages if self.beta else client.messages
            if self.way == "sync whole":
                return api.create(**asked)
            if self.way == "sync stream()":
                with api.stream(**asked) as stream:
                    return stream.get_final_message()
            return assembled(list(api.create(**asked, stream=True)))


def assembled(events: list[object]) -> object:
    """The message of raw events, put together without the SDK's help and held to the order that the API documents."""
    first, *between, delta, last = events
    assert (first.type, delta.type, last.type) == ("message_start", "message_delta", "message_stop")
    assert first.message.content == []
    assert first.message.stop_reason is None
    blocks: list[dict] = []
    inside = False
    for event in between:
        if event.type == "content_block_start":
            assert not inside
            assert event.index == len(blocks)
            blocks.append(event.content_block.to_dict())
            inside, pieces = True, ""
        elif event.type == "content_block_delta":
            assert inside
            assert event.index == len(blocks) - 1
            told = event.delta.to_dict()
            match told.pop("type"):
                case "input_json_delta":
                    pieces += told["partial_json"]
                case _:
                    for name, text in told.items():
                        blocks[-1][name] += text
        else:
            assert (event.type, event.index) == ("content_block_stop", len(blocks) - 1)
            inside = False
            if pieces:
                blocks[-1]["input"] = json.loads(pieces)
    assert not inside
    whole = first.message.to_dict() | {"content": blocks} | delta.delta.to_dict()
    whole["usage"] |= delta.usage.to_dict()
    return anthropic.types.Message.model_validate(whole)


@pytest.fixture(params=[*(f"in process, {way}" for way in WAYS), *(f"HTTP, {way}" for way in [*WAYS, *SYNC])])
def caller(request, gateway) -> Caller:
    """Every way in which an agent may ask; all are answered alike."""
    place, way = request.param.split(", ")
    return Caller(gateway, place == "in process", way)


@pytest.fixture(params=WAYS)
def asks(request, gateway) -> Caller:
    """Every way of asking in process."""
    return Caller(gateway, in_process=True, way=request.param)


@pytest.fixture
def whole(gateway) -> Caller:
    """One way, for what has nothing to do with it."""
    return Caller(gateway, in_process=True, way="whole")
