"""Streams of the Messages API: told while they are sampled, and of no effect where nobody had them."""

from __future__ import annotations

import asyncio

import pytest
from tests.gateway.messages.conftest import ASK, CALL, TOOLS, Caller
from tests.gateway.test_streaming import ended, stepped  # noqa: F401  # A fixture.

from agentrl.gateway.dialects.messages import events

WAYS = ["in process", "HTTP"]


@pytest.mark.parametrize("way", WAYS)
def test_events_leave_while_the_rest_is_sampled(stepped, way):  # noqa: F811
    gateway, backend, session = stepped(f"<think>\nMultiply.\n</think>\n\nLet me see.\n{CALL}")

    async def run():
        async with Caller(gateway, way == "in process", "").client(session) as client:
            backend.allowed += 1
            asked = {"model": "any", "max_tokens": 500, "messages": ASK, "tools": TOOLS}
            stream = await client.messages.create(**asked, stream=True)
            events = [await anext(aiter(stream))]
            assert session.in_flight == 1
            while backend.allowed < len(backend.ids) - 1:
                backend.allowed += 1
                await asyncio.sleep(0.002)
            async for event in stream:
                events.append(event)
                told = event.type == "content_block_delta" and event.delta.type == "text_delta"
                if told and event.delta.text.strip():
                    assert session.in_flight == 1
                    break
            backend.allowed += 100
            events += [event async for event in stream]
            return events

    told = asyncio.run(run())
    (call,) = session.calls
    assert told[0].message.usage.input_tokens == call.prompt_tokens
    kinds = [event.content_block.type for event in told if event.type == "content_block_start"]
    assert kinds == ["thinking", "text", "tool_use"]
    assert call.delivered


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_leaves_midway_has_nothing(stepped, way):  # noqa: F811
    gateway, backend, session = stepped("It is 408.")

    async def run():
        async with Caller(gateway, way == "in process", "").client(session) as client:
            backend.allowed += 3
            stream = await client.messages.create(model="any", max_tokens=500, messages=ASK, stream=True)
            await anext(aiter(stream))
            await stream.close()
            await ended(session)

    asyncio.run(run())
    (call,) = session.calls
    assert (call.finish_reason, call.delivered) == ("cancelled", False)


@pytest.mark.parametrize(("seconds", "pings"), [(-1.0, True), (3600.0, False)])
def test_a_client_hears_of_a_call_whose_arguments_are_still_written(stepped, monkeypatch, seconds, pings):  # noqa: F811
    monkeypatch.setattr(events, "_PING_S", seconds)
    gateway, backend, session = stepped(CALL)

    async def run():
        async with Caller(gateway, True, "").client(session) as client:
            asked = {"model": "any", "max_tokens": 500, "messages": ASK, "tools": TOOLS, "stream": True}
            backend.allowed += 1
            async with client.messages.with_streaming_response.create(**asked) as response:
                parts = []
                async for part in response.iter_bytes():
                    parts.append(part)
                return b"".join(parts)

    async def stepping():
        task = asyncio.create_task(run())
        while not task.done():
            backend.allowed += 1
            await asyncio.sleep(0.005)
        return task.result()

    told = asyncio.run(stepping())
    assert (b'event: ping\ndata: {"type":"ping"}\n\n' in told) == pings
    assert told.count(b"input_json_delta") == 1


def test_an_answer_that_was_lost_is_told_again_with_the_same_signature(gateway, open_session, backend):
    backend.says(f"<think>\nMultiply.\n</think>\n\nLet me see.\n{CALL}")
    session = open_session()

    async def run():
        async with Caller(gateway, True, "").client(session) as client:
            asked = {"model": "any", "max_tokens": 500, "messages": ASK, "tools": TOOLS, "stream": True}
            first = await client.messages.create(**asked)
            told = [await anext(aiter(first)) for _ in range(2)]
            await ended(session)
            await first.close()
            again = await client.messages.create(**asked, extra_headers={"x-stainless-retry-count": "1"})
            return told, [event async for event in again]

    told, events = asyncio.run(run())
    assert len(session.calls) == 1
    assert events[0].message.id == told[0].message.id == session.calls[0].id
    (signature,) = [event.delta.signature for event in events if getattr(event, "delta", None) and _signs(event)]
    assert session.thinking(signature) == "Multiply."


def _signs(event) -> bool:
    return event.type == "content_block_delta" and event.delta.type == "signature_delta"
