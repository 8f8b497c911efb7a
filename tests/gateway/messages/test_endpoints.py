"""Requests of the Messages API that are passed on to an endpoint of the chat completions API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import anthropic
import pytest
from tests.gateway.messages.conftest import ASK, TOOLS, WAYS, Caller
from tests.gateway.test_relay import CALL, ScriptedEndpoint

from agentrl.gateway import Gateway, RelayCompleter, SessionSettings


@pytest.fixture
def endpoint() -> ScriptedEndpoint:
    return ScriptedEndpoint()


@pytest.fixture
def relay(endpoint) -> Iterator[Gateway]:
    gateway = Gateway(RelayCompleter(endpoint))
    yield gateway
    gateway.stop()


@pytest.mark.parametrize("way", WAYS)
def test_a_request_is_translated_and_so_is_its_answer(relay, endpoint, way):
    endpoint.script += [{"role": "assistant", "content": "Hm.", "reasoning": "Add.", "tool_calls": [CALL]}]
    session = relay.open_session(SessionSettings(training=False))
    fields = {
        "system": "Calculate.",
        "stop_sequences": ["Done"],
        "tools": [*TOOLS, {"type": "web_search_20250305", "name": "web_search"}],
        "tool_choice": {"type": "tool", "name": "calculate", "disable_parallel_tool_use": True},
        "thinking": {"type": "disabled"},
        "output_config": {"effort": "low"},
        "extra_body": {"temperature": 0.3},
    }
    answer = Caller(relay, True, way).ask(session, **fields)
    function = {"name": "calculate", "description": "Calculates.", "parameters": {"type": "object"}}
    assert endpoint.requests[0].body == {
        "messages": [{"role": "system", "content": "Calculate."}, *ASK],
        "max_tokens": 500,
        "temperature": 0.3,
        "stop": ["Done"],
        "reasoning_effort": "low",
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "calculate"}},
        "parallel_tool_calls": False,
    }
    thinking, text, use = answer.content
    assert (thinking.thinking, text.text) == ("Add.", "Hm.")
    assert (use.id, use.name, use.input) == ("c1", "f", {"a": 1, "b": 2})
    (call,) = session.calls
    assert call.id == answer.id
    assert call.unmet == ("web_search_20250305", "enable_thinking")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (9, 1)


def test_thinking_of_an_endpoint_comes_back_by_its_signature(relay, endpoint):
    endpoint.script += [{"role": "assistant", "content": "Hm.", "reasoning_content": "Add."}]
    session = relay.open_session(SessionSettings(training=False))
    caller = Caller(relay, True, "whole")
    answer = caller.ask(session)
    caller.ask(session, [*ASK, {"role": "assistant", "content": answer.content}, *ASK])
    turn = {"role": "assistant", "content": "Hm.", "reasoning_content": "Add."}
    assert endpoint.requests[1].body["messages"] == [*ASK, turn, *ASK]
    assert session.calls[1].parent == session.calls[0].id


def test_tokens_of_an_endpoint_cannot_be_counted(relay):
    session = relay.open_session(SessionSettings(training=False))

    async def run() -> None:
        async with Caller(relay, True, "whole").client(session) as client:
            await client.messages.count_tokens(model="any", messages=ASK)

    with pytest.raises(anthropic.BadRequestError, match="cannot be counted here"):
        asyncio.run(run())
