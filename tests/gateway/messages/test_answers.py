"""The Messages API, asked by Anthropic's own SDK: whole and streamed, in process and over HTTP."""

from __future__ import annotations

import asyncio

import pytest
from tests.gateway.conftest import CONTEXT
from tests.gateway.messages.conftest import ASK, CALL, TOOLS, Caller


def test_a_message_is_answered(caller, open_session, backend):
    backend.says("It is 408.")
    session = open_session()
    answer = caller.ask(session)
    (call,) = session.calls
    assert (answer.id, answer.type, answer.role) == (call.id, "message", "assistant")
    assert answer.id.startswith("msg_")
    assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": "It is 408."}]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (call.prompt_tokens, call.completion_tokens)
    assert call.delivered
    assert call.unmet == ()


def test_a_tool_call_comes_as_a_block_with_its_input(caller, open_session, backend):
    backend.says(f"Let me see.\n{CALL}\n{CALL.replace('12', '34')}")
    session = open_session()
    answer = caller.ask(session, tools=TOOLS)
    (call,) = session.calls
    text, *uses = answer.content
    assert text.text == call.message["content"]
    assert [(use.type, use.name, use.input) for use in uses] == [
        ("tool_use", "calculate", {"n": 12}),
        ("tool_use", "calculate", {"n": 34}),
    ]
    assert [use.id for use in uses] == [made["id"] for made in call.message["tool_calls"]]
    assert answer.stop_reason == "tool_use"


def test_a_tool_loop_is_one_chain(caller, open_session, backend):
    backend.says(f"Let me see.\n{CALL}", CALL, "It is 408.")
    session = open_session()
    messages = list(ASK)
    for _ in range(3):
        answer = caller.ask(session, messages, tools=TOOLS, system="Calculate.")
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "408"}]}
            for block in answer.content
            if block.type == "tool_use"
        ]
        messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    assert answer.content[0].text == "It is 408."
    assert [call.parent for call in session.calls] == [None, *(call.id for call in session.calls[:-1])]
    assert [call.fork_reason for call in session.calls] == [None] * 3
    assert backend.requests[1].prompt_ids[: len(backend.requests[0].prompt_ids)] == backend.requests[0].prompt_ids


def test_the_same_conversation_through_chat_gives_the_same_prompt(whole, in_process, open_session, backend):
    backend.says(f"Let me see.\n{CALL}", "It is 408.", f"Let me see.\n{CALL}", "It is 408.")
    first = open_session()
    answer = whole.ask(
        first, tools=TOOLS, system=[{"type": "text", "text": "Calc"}, {"type": "text", "text": "ulate."}]
    )
    use = answer.content[1]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "408"}
    turns = [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    whole.ask(first, [*ASK, *turns], tools=TOOLS, system="Calculate.")

    function = {"name": "calculate", "description": "Calculates.", "parameters": {"type": "object"}}
    second = open_session()

    async def chat() -> None:
        async with in_process.client(second) as client:
            asked = {"model": "any", "tools": [{"type": "function", "function": function}]}
            messages = [{"role": "system", "content": "Calculate."}, *ASK]
            answer = await client.chat.completions.create(messages=messages, **asked)
            message = answer.choices[0].message
            result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "408"}
            await client.chat.completions.create(messages=[*messages, message, result], **asked)

    asyncio.run(chat())
    assert backend.requests[0].prompt_ids == backend.requests[2].prompt_ids
    assert backend.requests[1].prompt_ids == backend.requests[3].prompt_ids
    assert first.calls[1].parent == first.calls[0].id


def test_a_stop_sequence_is_named(caller, open_session, backend, monkeypatch):
    ids = backend.renderer.vocabulary.encode("It is 408. Observation:")
    backend.script.append(backend.chunk(ids, stop_string="Observation:"))
    answer = caller.ask(open_session(), stop_sequences=["Observation:", "Done"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "Observation:")
    assert answer.content[0].text.strip() == "It is 408."
    assert backend.requests[0].sampling.stop == ("Observation:", "Done")


@pytest.mark.parametrize(
    ("limit", "reason"), [(4, "max_tokens"), (8_000, "model_context_window_exceeded")], ids=["limit", "context"]
)
def test_a_message_that_is_cut_off_says_why(whole, open_session, backend, limit, reason):
    ids = backend.renderer.vocabulary.encode("It is 408.")[:4]
    backend.script.append(backend.chunk(ids, finish="length"))
    assert whole.ask(open_session(), max_tokens=limit).stop_reason == reason
    request = backend.requests[0]
    assert request.sampling.max_tokens == min(limit, CONTEXT - len(request.prompt_ids))


def test_tokens_are_counted(gateway, open_session, backend):
    backend.says("It is 408.")
    session = open_session()
    client = Caller(gateway, True, "whole").client(session)

    async def run():
        fields = {"model": "any", "messages": ASK, "system": "Calculate.", "tools": TOOLS}
        answer = await client.messages.create(max_tokens=9, **fields)
        counted = await client.messages.count_tokens(**fields)
        beta = await client.beta.messages.count_tokens(**fields, betas=["token-counting-2024-11-01"])
        return answer.usage.input_tokens, counted.input_tokens, beta.input_tokens

    assert len(set(asyncio.run(run()))) == 1
    assert len(session.calls) == 1


def test_the_beta_api_is_answered_too(caller, open_session, backend):
    backend.says(CALL)
    caller.beta = True
    answer = caller.ask(open_session(), tools=TOOLS, betas=["context-management-2025-06-27"])
    assert (answer.content[0].input, answer.stop_reason) == ({"n": 12}, "tool_use")
