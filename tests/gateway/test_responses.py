"""The Responses API through the SDK's own clients: what is answered, streamed, kept and recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from tests.gateway.conftest import CONTEXT, ScriptedBackend

from agentrl.gateway import EngineCompleter, Gateway
from agentrl.gateway.dialects.chat import ChatCompletions
from agentrl.gateway.dialects.responses.dialect import Responses
from agentrl.inference.contract import Capabilities

ASK = "What is 12 * 34?"
CALL = '<tool_call>\n{"name": "calculate", "arguments": {"n": 12}}\n</tool_call>'
PATCH = '<tool_call>\n{"name": "patch", "arguments": {"input": "a \\"b\\"\\n\\u00fc"}}\n</tool_call>'
THOUGHT = "<think>\nIt is 12 * 34.\n</think>\n\nIt is 408."
CALCULATE = {"type": "function", "name": "calculate", "parameters": {"type": "object"}}
CUSTOM = {"type": "custom", "name": "patch", "description": "Patches."}


@pytest.fixture(scope="module")
def served(renderer) -> Iterator[Gateway]:
    capabilities = Capabilities(CONTEXT, 8, frozenset({"temperature", "seed", "stop", "top_logprobs"}))
    dialects = [ChatCompletions(), Responses()]
    gateway = Gateway(EngineCompleter(ScriptedBackend(renderer), capabilities, renderer), dialects)
    gateway.start()
    yield gateway
    gateway.stop()


def run(connection, session, talk):
    """What ``talk`` returns, given a client of the session."""

    async def open_and_talk():
        async with connection.client(session) as client:
            return await talk(client)

    return asyncio.run(open_and_talk())


async def streamed(client, **request):
    stream = await client.responses.create(model="any", stream=True, **request)
    return [event async for event in stream]


def test_a_text_is_answered(connection, open_session, backend):
    backend.says("It is 408.")
    session = open_session()
    response = run(connection, session, lambda client: client.responses.create(model="any", input=ASK))
    (call,) = session.calls
    assert (response.id, response.status, response.output_text) == (call.id, "completed", "It is 408.")
    assert response.id.startswith("resp_")
    (item,) = response.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert (response.usage.input_tokens, response.usage.output_tokens) == (call.prompt_tokens, call.completion_tokens)
    assert (response.temperature, response.tools, response.tool_choice) == (1.0, [], "auto")
    assert call.delivered


TEXT_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def kinds(events) -> list[str]:
    """The types of events, each once where several of one type follow each other."""
    types = [event.type for event in events]
    return [kind for index, kind in enumerate(types) if index == 0 or types[index - 1] != kind]


def test_a_stream_tells_of_the_response_that_it_comes_to(connection, open_session, backend):
    backend.says("It is 408.")
    session = open_session()
    events = run(connection, session, lambda client: streamed(client, input=ASK))
    assert kinds(events) == TEXT_EVENTS
    assert [event.sequence_number for event in events] == list(range(len(events)))
    (call,) = session.calls
    first, last = events[0].response, events[-1].response
    assert (first.id, first.status, first.output, first.usage) == (call.id, "in_progress", [], None)
    assert (last.id, last.status, last.output_text) == (call.id, "completed", "It is 408.")
    (item,) = last.output
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {item.id}
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "It is 408."
    assert next(event.text for event in events if event.type == "response.output_text.done") == "It is 408."
    assert next(event.item for event in events if event.type == "response.output_item.done") == item
    assert call.delivered


def test_a_stream_of_calls_tells_of_each(connection, open_session, backend):
    backend.says(f"Let me see.\n{CALL}\n{PATCH}")
    session = open_session()
    events = run(connection, session, lambda client: streamed(client, input=ASK, tools=[CALCULATE, CUSTOM]))
    assert kinds(events)[8:-1] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.output_item.done",
    ]
    said, call, custom = events[-1].response.output
    made, patched = session.calls[0].message["tool_calls"]
    assert said.content[0].text == session.calls[0].message["content"]
    assert (call.type, call.call_id, call.name, call.status) == ("function_call", made["id"], "calculate", "completed")
    assert json.loads(call.arguments) == {"n": 12}
    assert (custom.type, custom.call_id, custom.name) == ("custom_tool_call", patched["id"], "patch")
    assert custom.input == 'a "b"\n\u00fc'
    told = [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"]
    assert "".join(told) == custom.input
    assert [event.output_index for event in events if event.type == "response.output_item.done"] == [0, 1, 2]
    assert len({item.id for item in events[-1].response.output}) == 3


def test_a_stream_of_thinking_tells_of_it(connection, open_session, backend):
    backend.says(THOUGHT)
    session = open_session()
    include = ["reasoning.encrypted_content"]
    events = run(connection, session, lambda client: streamed(client, input=ASK, include=include))
    assert kinds(events)[2:8] == [
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    thought, said = events[-1].response.output
    assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", "It is 12 * 34.", [])
    assert thought.encrypted_content
    assert next(event.item for event in events if event.type == "response.output_item.done") == thought
    assert said.content[0].text == "It is 408."
    assert 0 < events[-1].response.usage.output_tokens_details.reasoning_tokens < session.calls[0].completion_tokens


def test_a_summary_of_thinking_leaves_nothing_out(connection, open_session, backend):
    backend.says(THOUGHT)
    session = open_session()
    events = run(connection, session, lambda client: streamed(client, input=ASK, reasoning={"summary": "auto"}))
    assert kinds(events)[2:8] == [
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
    ]
    thought, _ = events[-1].response.output
    assert (thought.summary[0].text, thought.content) == ("It is 12 * 34.", None)
    assert thought.encrypted_content is None
