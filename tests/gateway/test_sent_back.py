"""What SDKs make of the policy's turn is taken when they send it back, and is the same turn."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}]
ASK = {"role": "user", "content": "What is 12 * 34?"}
SAID = '<think>\nHm.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "408"}


def _calls(**beside):
    return [{"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'} | beside}]


NULLS = {"refusal": None, "annotations": None, "audio": None, "function_call": None}
SHAPES = {
    "openai, chat.completions.parse": NULLS
    | {"content": None, "tool_calls": _calls(parsed_arguments={"a": 1}), "parsed": None, "reasoning_content": "Hm."},
    "openai, an answer parsed": {"content": None, "tool_calls": _calls(), "parsed": {"a": 1}},
    "openai, joined from a stream": {"content": "", "tool_calls": [call | {"index": 0} for call in _calls()]},
    "litellm": {
        "content": None,
        "tool_calls": _calls(),
        "function_call": None,
        "reasoning_content": "Hm.",
        "provider_specific_fields": None,
    },
    "litellm, with what the provider said": {
        "content": None,
        "tool_calls": [
            {"index": 0, "provider_specific_fields": {"thought_signature": "x"}, **call}
            for call in _calls(provider_specific_fields=None)
        ],
        "function_call": None,
        "annotations": [],
        "images": [],
        "thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}],
        "reasoning_content": "Hm.",
        "provider_specific_fields": {"refusal": None, "reasoning_content": "Hm.", "citations": [["x"]]},
    },
    "langchain": {"content": None, "tool_calls": _calls()},
    "langchain, text blocks": {"content": [{"type": "text", "text": "", "annotations": []}], "tool_calls": _calls()},
    "camel": {"content": "", "tool_calls": _calls()},
    "camel, with reasoning": {"content": "", "tool_calls": _calls(), "reasoning_content": "Hm.", "function_call": None},
    "openai-agents": {"content": None, "tool_calls": _calls(), "refusal": None},
    "pydantic-ai": {"reasoning_content": "Hm.", "content": None, "tool_calls": _calls(arguments='{"a":1}')},
    "pydantic-ai, thinking in tags": {"content": "<think>\nHm.\n</think>", "tool_calls": _calls()},
    "autogen": {"content": None, "name": "solver", "tool_calls": _calls()},
    "vllm's own client": NULLS
    | {"content": None, "tool_calls": _calls(), "reasoning": "Hm.", "reasoning_content": None},
    "openrouter": {
        "content": "",
        "tool_calls": _calls(),
        "reasoning": "Hm.",
        "reasoning_details": [{"type": "reasoning.text", "text": "Hm.", "format": None, "index": 0}],
        "refusal": None,
    },
    "openrouter, details alone": {
        "content": "",
        "tool_calls": _calls(),
        "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}, {"type": "reasoning.encrypted", "data": "x"}],
    },
    "litellm, blocks alone": {
        "content": None,
        "tool_calls": _calls(),
        "thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}],
    },
    "smolagents": {"content": [{"type": "text", "text": ""}], "tool_calls": _calls()},
    "strands": {"content": [{"type": "text", "text": "\n\n"}], "tool_calls": _calls()},
    "google-adk": {"content": None, "tool_calls": _calls(), "name": None, "function_call": None, "audio": None},
    "nothing but the call": {"tool_calls": [{"id": "call_1", "function": {"name": "add", "arguments": '{"a": 1}'}}]},
}


def talk(connection, backend, session, send_back):
    """The policy calls a tool, the agent sends that back with a result; the second prompt's ids."""
    backend.says(SAID, "It is 408.")

    async def agent():
        async with connection.client(session, max_retries=0) as client:
            first = await client.chat.completions.create(model="x", messages=[ASK], tools=TOOLS)
            turn = send_back(first.choices[0].message)
            await client.chat.completions.create(model="x", messages=[ASK, turn, RESULT], tools=TOOLS)

    asyncio.run(agent())
    return list(backend.requests[-1].prompt_ids)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_policys_turn_is_known_again_as_every_sdk_writes_it(in_process, backend, open_session, shape):
    session = open_session()
    talk(in_process, backend, session, lambda message: {"role": "assistant", **SHAPES[shape]})
    assert session.calls[1].parent == session.calls[0].id
    assert json.loads(json.dumps(session.calls[1].request["messages"]))[1] == {"role": "assistant", **SHAPES[shape]}


@pytest.mark.parametrize(
    "how", [{}, {"exclude_none": True}, {"exclude_unset": True}, {"exclude_defaults": True}], ids=str
)
def test_every_dump_of_the_openai_sdk_is_known_again(connection, backend, open_session, how):
    session = open_session()
    talk(connection, backend, session, lambda message: {"role": "assistant"} | message.model_dump(**how))
    assert session.calls[1].parent == session.calls[0].id


@pytest.mark.parametrize("send_back", [lambda message: message, lambda message: message.to_dict()], ids=["it", "dict"])
def test_the_message_itself_and_its_dict_are_known_again(connection, backend, open_session, send_back):
    session = open_session()
    talk(connection, backend, session, send_back)
    assert session.calls[1].parent == session.calls[0].id


def test_a_refusal_is_what_the_policy_said(in_process, backend, open_session):
    """The API has a field of its own for it, and a part of the content."""
    prompts = []
    for turn in (
        {"content": "I will not."},
        {"content": None, "refusal": "I will not."},
        {"content": [{"type": "refusal", "refusal": "I will not."}]},
        {"content": "I ", "refusal": "will not."},
    ):
        backend.says("It is 408.")

        async def agent(turn):
            async with in_process.client(open_session(), max_retries=0) as client:
                messages = [ASK, {"role": "assistant", **turn}, ASK]
                await client.chat.completions.create(model="x", messages=messages)

        asyncio.run(agent(turn))
        prompts.append(list(backend.requests[-1].prompt_ids))
    assert prompts == prompts[:1] * 4


@pytest.mark.parametrize("shape", ["langchain", "litellm, with what the provider said", "openrouter"])
def test_what_an_sdk_notes_beside_a_turn_never_reaches_the_model(in_process, backend, open_session, shape):
    """Where the turn is nobody's here, it is rendered as it was sent."""
    seen = []
    for said in (SHAPES["langchain"] | {"reasoning_content": "Hm."}, SHAPES[shape] | {"reasoning_content": "Hm."}):
        backend.says("It is 408.")

        async def agent(turn):
            async with in_process.client(open_session(), max_retries=0) as client:
                messages = [ASK, turn | {"role": "assistant"}, RESULT]
                await client.chat.completions.create(model="x", messages=messages, tools=TOOLS)

        asyncio.run(agent(said))
        seen.append(list(backend.requests[-1].prompt_ids))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "field",
    [
        {"audio": {"id": "a"}},
        {"function_call": {"name": "add", "arguments": "{}"}},
        {"images": [{"url": "x"}]},
        {"thinking_blocks": [{"type": "redacted_thinking", "data": "x"}]},
        {"mood": 0},
    ],
    ids=str,
)
def test_what_would_be_lost_on_the_model_is_refused_by_its_name(in_process, backend, open_session, field):
    async def agent():
        async with in_process.client(open_session(), max_retries=0) as client:
            messages = [ASK, {"role": "assistant", "content": "x"} | field, ASK]
            await client.chat.completions.create(model="x", messages=messages)

    with pytest.raises(openai.BadRequestError, match=rf"messages\[1\]\.{next(iter(field))} cannot be used"):
        asyncio.run(agent())
