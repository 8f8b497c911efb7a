"""Responses that a session keeps, and histories as clients send them back: one chain, whatever has become of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import openai
import pytest
from openai.types.responses import Response

ASK = "What is 12 * 34?"
THOUGHT = "<think>\nIt is 12 * 34.\n</think>\n\n"
CALL = '<tool_call>\n{"name": "calculate", "arguments": {"n": 12}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "calculate", "arguments": {"n": 34}}\n</tool_call>'
PATCH = '<tool_call>\n{"name": "patch", "arguments": {"input": "*** Begin"}}\n</tool_call>'
ODD = '<tool_call>\n{"name": "patch", "arguments": {"text": "*** Begin"}}\n</tool_call>'
FUNCTION = {"type": "function", "name": "calculate", "parameters": {"type": "object"}}
TOOLS = [FUNCTION, {"type": "custom", "name": "patch"}]
ENCRYPTED = ["reasoning.encrypted_content"]

Dump = Callable[[Response], list[dict]]


def plain(response: Response) -> list[dict]:
    return [item.model_dump() for item in response.output]


def without_nulls(response: Response) -> list[dict]:
    return [item.model_dump(exclude_none=True) for item in response.output]


def unset_left_out(response: Response) -> list[dict]:
    return [item.model_dump(exclude_unset=True) for item in response.output]


def as_json(response: Response) -> list[dict]:
    return json.loads(response.model_dump_json())["output"]


def without_ids(response: Response) -> list[dict]:
    """As a client that keeps no state on the server sends them."""
    return [{name: value for name, value in item.items() if name not in ("id", "status")} for item in plain(response)]


def without_thinking(response: Response) -> list[dict]:
    return [item for item in without_nulls(response) if item["type"] != "reasoning"]


def with_handles_alone(response: Response) -> list[dict]:
    """As Codex does, which sends thinking back encrypted only."""
    items = without_ids(response)
    for item in items:
        if item["type"] == "reasoning":
            item["content"] = None
    return items


def in_the_clear(response: Response) -> list[dict]:
    items = without_nulls(response)
    for item in items:
        item.pop("encrypted_content", None)
    return items


def short_texts(response: Response) -> list[dict]:
    """Messages in the short form of the API, which has no parts."""
    return [
        {"role": "assistant", "content": item["content"][0]["text"]} if item["type"] == "message" else item
        for item in without_nulls(response)
    ]


def references(response: Response) -> list[dict]:
    return [{"type": "item_reference", "id": item.id} for item in response.output]


def with_notes(response: Response) -> list[dict]:
    """With what newer clients add."""
    return [{**item, "phase": "commentary"} if item["type"] == "message" else item for item in plain(response)]


DUMPS: list[Dump] = [
    plain,
    without_nulls,
    unset_left_out,
    as_json,
    without_ids,
    without_thinking,
    with_handles_alone,
    in_the_clear,
    short_texts,
    references,
    with_notes,
]


def outputs(response: Response) -> list[dict]:
    """What the tools answer, each in the form of its kind."""
    kinds = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}
    return [
        {"type": kinds[item.type], "call_id": item.call_id, "output": [{"type": "input_text", "text": "408"}]}
        for item in response.output
        if item.type in kinds
    ]


@pytest.fixture
def ask(in_process, open_session) -> Callable[..., Response]:
    """Asks for one response in a session, by default in the same one each time."""
    session = open_session()

    def ask(asked: object, **fields: object) -> Response:
        async def run() -> Response:
            async with in_process.client(session, max_retries=0) as client:
                return await client.responses.create(model="any", input=asked, **fields)

        return asyncio.run(run())

    ask.session = session
    return ask


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.__name__)
@pytest.mark.parametrize(
    "said",
    [
        "It is 408.",
        "",
        f"{THOUGHT}It is 408.",
        f"Let me see.\n{CALL}",
        f"{CALL}\n{OTHER}",
        f"{THOUGHT}Let me see.\n{CALL}\n{PATCH}",
        f"{THOUGHT}{ODD}",
    ],
)
def test_what_a_client_sends_back_continues_its_conversation(ask, backend, said, dump):
    backend.says(said, "Yes.")
    first = ask(ASK, tools=TOOLS, include=ENCRYPTED)
    told = outputs(first) or [{"role": "user", "content": "Sure?"}]
    ask([{"role": "user", "content": ASK}, *dump(first), *told], tools=TOOLS, include=ENCRYPTED)
    one, two = ask.session.calls
    assert (two.parent, two.unmet) == (one.id, ())
    asked_first, asked_then = (request.prompt_ids for request in backend.requests)
    if outputs(first) or THOUGHT not in said:  # After another question the template drops thinking.
        assert two.fork_reason is None
        sampled = ask.session.tree.spans[1].ids
        assert list(asked_then[: len(asked_first) + len(sampled)]) == [*asked_first, *sampled]


def test_results_between_the_calls_of_one_turn_are_one_turn(ask, backend):
    backend.says(f"{CALL}\n{OTHER}", "It is 408.")
    first = ask(ASK, tools=TOOLS)
    one, two = without_nulls(first)
    told_one, told_two = outputs(first)
    ask([{"role": "user", "content": ASK}, one, told_one, two, told_two], tools=TOOLS)
    assert (ask.session.calls[1].parent, ask.session.calls[1].fork_reason) == (first.id, None)


def test_thinking_of_another_session_is_left_out_and_counted(ask, open_session, in_process, backend):
    backend.says(f"{THOUGHT}{CALL}", f"{THOUGHT}{CALL}", "It is 408.", "It is 408.")
    first = ask(ASK, tools=TOOLS, include=ENCRYPTED)

    async def elsewhere() -> Response:
        async with in_process.client(open_session()) as client:
            return await client.responses.create(model="any", input=ASK, tools=TOOLS, include=ENCRYPTED)

    foreign = asyncio.run(elsewhere())
    handles = [response.output[0].encrypted_content for response in (first, foreign)]
    assert handles[0] != handles[1]
    for handle in (handles[1], "gAAAAA"):
        thought, call = without_nulls(first)
        history = [{"role": "user", "content": ASK}, thought | {"encrypted_content": handle}, call, *outputs(first)]
        response = ask(history, tools=TOOLS)
        call = ask.session.calls[-1]
        assert (response.output_text, call.unmet) == ("It is 408.", ("reasoning.encrypted_content",))
        assert call.parent == first.id, "the turn is found by what it says"


def test_a_response_is_kept_and_forgotten(ask, in_process, backend):
    backend.says(f"Let me see.\n{CALL}", "It is 408.")
    first = ask(ASK, tools=TOOLS, metadata={"a": "b"}, user="u", instructions="Calculate.")
    second = ask(outputs(first), tools=TOOLS, previous_response_id=first.id)
    assert second.previous_response_id == first.id

    async def kept() -> None:
        async with in_process.client(ask.session) as client:
            assert await client.responses.retrieve(first.id) == first
            assert await client.responses.retrieve(second.id) == second
            items = [item async for item in client.responses.input_items.list(second.id, order="asc", limit=2)]
            assert [item.type for item in items] == ["message", "message", "function_call", "function_call_output"]
            assert [item.id for item in items][1:3] == [item.id for item in first.output]
            (asked,) = [item async for item in client.responses.input_items.list(first.id)]
            assert (asked.role, asked.content[0].type, asked.content[0].text) == ("user", "input_text", ASK)
            await client.responses.delete(first.id)
            for method in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
                with pytest.raises(openai.NotFoundError, match=f"Response with id '{first.id}' not found"):
                    await method(first.id)
            with pytest.raises(openai.BadRequestError, match="not one that is made in the background"):
                await client.responses.cancel(second.id)
            items = [item async for item in client.responses.input_items.list(second.id)]
            assert len(items) == 4, "a response knows what it continues, even where that is forgotten"

    asyncio.run(kept())


def test_what_refers_to_what_is_kept_can_be_continued(ask, in_process, backend):
    backend.says("It is 408.", "Yes.", "Bye.")
    first = ask(ASK)
    question = {"role": "user", "content": "Sure?"}
    second = ask([{"role": "user", "content": ASK}, {"id": first.output[0].id}, question])
    ask("Thanks.", previous_response_id=second.id)
    assert [call.parent for call in ask.session.calls] == [None, first.id, second.id]

    async def listed() -> list[str]:
        async with in_process.client(ask.session) as client:
            return [item.id async for item in client.responses.input_items.list(second.id, order="asc")]

    assert asyncio.run(listed())[1] == first.output[0].id


def test_a_conversation_goes_on_in_another_protocol(ask, in_process, backend):
    backend.says(f"{THOUGHT}Let me see.\n{CALL}", CALL, "It is 408.")
    function = {"type": "function", "function": {name: FUNCTION[name] for name in ("name", "parameters")}}
    system = {"role": "system", "content": "Calculate."}

    async def chat(*messages: dict) -> dict:
        async with in_process.client(ask.session) as client:
            asked = [system, {"role": "user", "content": ASK}, *messages]
            answer = await client.chat.completions.create(model="any", messages=asked, tools=[function])
            return answer.choices[0].message.model_dump(exclude_none=True)

    first = asyncio.run(chat())
    call = first["tool_calls"][0]
    turn = [
        {"role": "assistant", "content": first["content"]},
        {"type": "function_call", "call_id": call["id"], **call["function"]},
        {"type": "function_call_output", "call_id": call["id"], "output": "408"},
    ]
    second = ask([{"role": "user", "content": ASK}, *turn], instructions="Calculate.", tools=[FUNCTION])
    made = second.output[0]
    again = {"id": made.call_id, "type": "function", "function": {"name": made.name, "arguments": made.arguments}}
    results = [{"role": "tool", "tool_call_id": each["id"], "content": "408"} for each in (call, again)]
    asyncio.run(chat(first, results[0], {"role": "assistant", "tool_calls": [again]}, results[1]))
    calls = ask.session.calls
    assert [each.parent for each in calls] == [None, calls[0].id, calls[1].id]
    assert [each.fork_reason for each in calls] == [None] * 3


@pytest.mark.parametrize("stored", [None, True, False])
def test_what_is_not_to_be_stored_is_not(ask, in_process, open_session, backend, stored):
    backend.says("It is 408.")
    response = ask(ASK, **({} if stored is None else {"store": stored}))

    async def found(session) -> bool:
        async with in_process.client(session) as client:
            try:
                await client.responses.retrieve(response.id)
            except openai.NotFoundError:
                return False
            return True

    assert asyncio.run(found(ask.session)) is (stored is not False)
    assert not asyncio.run(found(open_session())), "another session knows nothing of it"


def test_what_is_not_kept_cannot_be_continued(ask, backend):
    backend.says("It is 408.")
    first = ask(ASK, store=False)
    for fields, status, code in [
        ({"asked": "Sure?", "previous_response_id": first.id}, 400, "previous_response_not_found"),
        ({"asked": [{"type": "item_reference", "id": first.output[0].id}]}, 404, "invalid_request_error"),
    ]:
        with pytest.raises(openai.APIStatusError, match="not found") as refused:
            ask(**fields)
        assert (refused.value.status_code, refused.value.code) == (status, code)
    assert len(ask.session.calls) == 1
