"""The Responses API through the SDK's own clients: what is answered, streamed, kept and recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import httpx2
import openai
import pytest
from tests.gateway.conftest import CONTEXT, Connection, ScriptedBackend
from tests.gateway.test_relay import ScriptedEndpoint
from tests.gateway.test_streaming import SteppedBackend

from agentrl.gateway import EngineCompleter, Gateway, RelayCompleter, SessionSettings
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
    sampling = frozenset({"temperature", "seed", "stop", "top_logprobs", "grammar"})
    capabilities = Capabilities(CONTEXT, 8, sampling=sampling)
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


def ask(connection, session, **fields):
    """The response to a request."""
    return run(connection, session, lambda client: client.responses.create(**{"model": "any", "input": ASK} | fields))


def streamed(connection, session, **fields):
    """The events of a response."""

    async def talk(client):
        stream = await client.responses.create(**{"model": "any", "input": ASK} | fields, stream=True)
        return [event async for event in stream]

    return run(connection, session, talk)


def post(connection, session, **fields):
    """The response to fields that the SDK may not know."""
    body = {"model": "any", "input": ASK} | fields
    return run(connection, session, lambda client: client.post("/responses", body=body, cast_to=object))


def test_a_text_is_answered(connection, open_session, backend):
    backend.says("It is 408.")
    session = open_session()
    response = ask(connection, session)
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
    events = streamed(connection, session)
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
    events = streamed(connection, session, tools=[CALCULATE, CUSTOM])
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
    events = streamed(connection, session, include=include)
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
    events = streamed(connection, session, reasoning={"summary": "auto"})
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


def failed(ask_it) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as refused:
        ask_it()
    return refused.value


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": None}, "input", "holds no message"),
        ({"input": []}, "input", "holds no message"),
        ({"input": 3}, "input", "neither a text nor a list"),
        ({"input": ["x"]}, "input[0]", "is not an object"),
        ({"input": [{"type": "message", "role": "tool", "content": "x"}]}, "input[0].role", "'tool'"),
        ({"input": [{"role": "user"}]}, "input[0].content", "neither a text nor a list"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
            "input[0].content[0]",
            "reads text only",
        ),
        ({"input": [{"type": "video"}]}, "input[0].type", "'video'"),
        ({"input": [{"type": ["message"]}]}, "input[0].type", "is"),
        ({"input": [{"type": "function_call", "name": "x", "arguments": "{}"}]}, "input[0].call_id", "is missing"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id", "is missing"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": {}}]}, "input[0].output", "neither"),
        ({"input": [{"type": "reasoning", "summary": ["x"]}]}, "input[0].content", "not a list of texts"),
        ({"instructions": ["x"]}, "instructions", "is not a text"),
        ({"max_output_tokens": 0}, "max_output_tokens", "whole number"),
        ({"max_output_tokens": True}, "max_output_tokens", "whole number"),
        ({"temperature": "hot"}, "temperature", "is not a number"),
        ({"temperature": 0}, "temperature", "rollout.override.temperature"),
        ({"top_p": 0.5}, "top_p", "rollout.override: {top_p: null}"),
        ({"top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"include": ["thoughts"]}, "include", "'thoughts'"),
        ({"include": "thoughts"}, "include", "not a list"),
        ({"background": True}, "background", "cannot be honoured"),
        ({"conversation": "conv_1"}, "conversation", "previous_response_id"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "instructions"),
        ({"moderation": {"model": "x"}}, "moderation", "cannot be honoured"),
        ({"stream": "yes"}, "stream", "neither true nor false"),
        ({"store": "yes"}, "store", "neither true nor false"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "no form of an answer"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "is missing"),
        ({"text": {"size": 3}}, "text.size", "not a field"),
        ({"reasoning": "high"}, "reasoning", "not an object"),
        ({"reasoning": {"effort": "enormous"}}, "reasoning_effort", "none of"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "is missing"),
        ({"tools": [{"name": "x"}]}, "tools[0].type", "is missing"),
        ({"tools": [{"type": "function", "name": "x", "parameters": []}]}, "tools[0].parameters", "no JSON schema"),
        ({"tools": [{"type": "function", "name": "x", "strict": 1}]}, "tools[0].strict", "neither"),
        ({"tools": [{"type": "function", "name": "x", "returns": 1}]}, "tools[0].returns", "not a field"),
        ({"tools": [{"type": "custom", "name": "x", "format": {"type": "xml"}}]}, "tools[0].format", "neither"),
        ({"tools": [CALCULATE], "tool_choice": {"type": "function", "name": "y"}}, "tool_choice", "names none"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice", "nothing to call"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "no way of choosing"),
        ({"temprature": 1}, "temprature", "did you mean 'temperature'"),
        ({"frobnicate": 1}, "frobnicate", "rollout.override: {frobnicate: null}"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(in_process, open_session, backend, fields, param, message):
    session = open_session()
    error = failed(lambda: post(in_process, session, **fields))
    assert (error.status_code, error.param, error.type) == (400, param, "invalid_request_error")
    assert message in error.message
    assert not session.calls
    assert not backend.requests


def test_errors_of_the_gateway_have_the_shape_of_the_api(connection, open_session, backend):
    session = open_session()
    session.close()
    closed = failed(lambda: ask(connection, session))
    assert (closed.status_code, closed.code, closed.type) == (404, "session_closed", "invalid_request_error")
    session = open_session()
    long = failed(lambda: ask(connection, session, input=ASK * 1000))
    assert (long.status_code, long.code, long.param) == (400, "context_length_exceeded", "input")


def test_what_others_would_have_to_run_is_left_out_and_counted(in_process, open_session, backend):
    backend.says("It is 408.", "It is 408.")
    session = open_session()
    hosted = [
        {"type": "web_search"},
        {"type": "namespace", "name": "n", "description": "N.", "tools": []},
        {"type": "file_search", "vector_store_ids": ["x"]},
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "mcp", "server_label": "x"},
        {"type": "image_generation"},
        {"type": "computer"},
        {"type": "local_shell"},
    ]
    history = [
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"type": "mcp_list_tools", "id": "x", "server_label": "x", "tools": []},
        {"type": "compaction", "encrypted_content": "x"},
        {"type": None, "role": "user", "content": ASK, "mood": "good"},
    ]
    wishes = {"truncation": "auto", "reasoning": {"effort": "high"}, "text": {"verbosity": "low"}}
    response = ask(in_process, session, input=history, tools=[*hosted, CALCULATE], **wishes)
    ask(in_process, session, tools=[CALCULATE])
    assert backend.requests[0].prompt_ids == backend.requests[1].prompt_ids
    assert set(session.calls[0].unmet) == {
        *(tool["type"] for tool in hosted),
        *("web_search_call", "mcp_list_tools", "compaction", "message.mood"),
        *("truncation", "reasoning_effort", "verbosity"),
    }
    assert session.calls[1].unmet == ()
    assert [tool.type for tool in response.tools] == [tool["type"] for tool in [*hosted, CALCULATE]]


def test_fields_without_effect_are_taken_and_repeated(in_process, open_session, backend):
    backend.says("It is 408.")
    session = open_session()
    fields = {
        "metadata": {"a": "b"},
        "user": "u",
        "prompt_cache_key": "k",
        "service_tier": "auto",
        "safety_identifier": "s",
        "max_tool_calls": 3,
        "instructions": "Calculate.",
        "parallel_tool_calls": True,
        "top_logprobs": 0,
        "store": False,
        "truncation": "disabled",
        "max_output_tokens": 50,
    }
    response = ask(in_process, session, extra_body={"client_metadata": {"x": "y"}, "background": False}, **fields)
    repeated = response.model_dump()
    assert {name: repeated.get(name, fields[name]) for name in fields} == fields
    assert session.calls[0].unmet == ()
    assert backend.requests[0].sampling.max_tokens == 50


def test_a_response_that_is_cut_off_is_incomplete(connection, open_session, backend):
    for stream in (False, True):
        backend.script.append(backend.chunk(backend.renderer.vocabulary.encode("It is"), finish="length"))
        session = open_session()
        if stream:
            *_, done, last = streamed(connection, session, max_output_tokens=2)
            assert (done.type, last.type) == ("response.output_item.done", "response.incomplete")
            response = last.response
        else:
            response = ask(connection, session, max_output_tokens=2)
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert (response.output[0].status, response.output_text) == ("incomplete", "It is")
        assert response.error is None


def test_a_turn_without_words_is_a_message(in_process, open_session, backend):
    backend.says("", "<think>\nHm.\n</think>\n\n")
    for types in (["message"], ["reasoning", "message"]):
        session = open_session()
        response = ask(in_process, session)
        assert [item.type for item in response.output] == types
        assert response.output_text == ""


def test_logprobs_are_those_of_the_text(connection, open_session, backend):
    for stream in (False, True):
        backend.says(f"{THOUGHT}\n{CALL}")
        session = open_session()
        asked = {"tools": [CALCULATE], "include": ["message.output_text.logprobs"]}
        if stream:
            events = streamed(connection, session, **asked)
            response = events[-1].response
            told = [each for event in events if event.type == "response.output_text.delta" for each in event.logprobs]
            assert [each.logprob for each in told] == [each.logprob for each in response.output[1].content[0].logprobs]
        else:
            response = ask(connection, session, **asked)
        logprobs = response.output[1].content[0].logprobs
        assert b"".join(bytes(each.bytes) for each in logprobs).decode().strip() == "It is 408."
        sampled = session.tree.spans[-1].sampled.logprobs
        assert {each.logprob for each in logprobs} < set(sampled)


def test_tokens_are_counted_without_a_call(connection, open_session, backend):
    session = open_session()
    counted = run(connection, session, lambda client: client.responses.input_tokens.count(model="any", input=ASK))
    assert not session.calls
    backend.says("It is 408.")
    ask(connection, session)
    assert counted.input_tokens == session.calls[0].prompt_tokens


def test_a_client_that_is_not_asynchronous_is_answered_too(gateway, open_session, backend):
    backend.says("It is 408.", f"Let me see.\n{CALL}")
    session = open_session()
    with openai.OpenAI(base_url=session.base_url, api_key=session.api_key) as client:
        assert client.responses.create(model="any", input=ASK).output_text == "It is 408."
        with client.responses.stream(model="any", input=ASK, tools=[CALCULATE | {"strict": True}]) as stream:
            told = [event.type for event in stream]
            response = stream.get_final_response()
    assert told[-1] == "response.completed"
    assert response.output[1].parsed_arguments == {"n": 12}
    assert [call.delivered for call in session.calls] == [True, True]


OVERRIDES = [
    ({"temperature": 0.5}, {"temperature": 0.9}, ("temperature",)),
    ({"max_tokens": 7}, {"max_output_tokens": 9}, ("max_output_tokens",)),
    ({"max_completion_tokens": 7}, {"max_output_tokens": 9}, ("max_output_tokens",)),
    ({"response_format": None}, {"text": {"format": {"type": "json_object"}}}, ("text.format",)),
    ({"reasoning_effort": None}, {"reasoning": {"effort": "high"}}, ("reasoning.effort",)),
    ({"verbosity": None}, {"text": {"verbosity": "low"}}, ("text.verbosity",)),
    ({"logprobs": False}, {"include": ["message.output_text.logprobs"]}, ("include",)),
    ({"strict": False}, {"tools": [CALCULATE | {"strict": True}]}, ("strict",)),
    ({"tool_choice": None}, {"tools": [CALCULATE], "tool_choice": "required"}, ("tool_choice",)),
    ({"frobnicate": None}, {"frobnicate": 3}, ("frobnicate",)),
    ({"top_p": None, "n": 1}, {}, ()),
]


@pytest.mark.parametrize(("override", "fields", "changed"), OVERRIDES)
def test_an_override_reaches_the_fields_as_they_are_called_here(
    in_process, open_session, backend, override, fields, changed
):
    backend.says("It is 408.")
    session = open_session(override=override)
    post(in_process, session, **fields)
    (call,) = session.calls
    assert (call.overridden, call.unmet) == (changed, ())
    sampling = backend.requests[0].sampling
    assert sampling.temperature == override.get("temperature", 1.0)
    assert (sampling.max_tokens == 7) is any("max_" in name for name in override)
    assert sampling.grammar is None


@pytest.mark.parametrize("way", ["in process", "HTTP"])
def test_an_answer_that_breaks_off_has_failed(renderer, way):
    vocabulary = renderer.vocabulary
    backend = SteppedBackend([*vocabulary.encode("It is 408."), vocabulary.convert_tokens_to_ids("<|im_end|>")])
    backend.allowed, backend.fails = 1, True
    gateway = Gateway(EngineCompleter(backend, Capabilities(CONTEXT, 8), renderer))
    gateway.start()
    session = gateway.open_session(SessionSettings(training=True))

    async def talk(client):
        events = []
        async for event in await client.responses.create(model="any", input=ASK, stream=True):
            events.append(event)
            backend.allowed = 100
        return events

    events = run(Connection(gateway, httpx2, way == "in process"), session, talk)
    gateway.stop()
    *_, error, last = events
    assert (error.type, error.message) == ("error", "the engine broke")
    assert (last.type, last.response.status, last.response.error.code) == ("response.failed", "failed", "server_error")
    assert last.response.error.message == "the engine broke"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert not session.calls


TALK = f"{THOUGHT}\n{CALL}\n{PATCH}"
STEPS = {
    "response.reasoning_text.delta": "It is 12 * 34.",
    "response.output_text.delta": "It is 408.",
    "response.function_call_arguments.delta": '{"n": 12}',
    "response.custom_tool_call_input.delta": 'a "b"\n\u00fc',
}


@pytest.mark.parametrize("way", ["in process", "HTTP"])
def test_what_is_told_token_by_token_is_the_response_that_is_kept(renderer, way):
    vocabulary = renderer.vocabulary
    backend = SteppedBackend([*vocabulary.encode(TALK), vocabulary.convert_tokens_to_ids("<|im_end|>")])
    gateway = Gateway(EngineCompleter(backend, Capabilities(CONTEXT, 8), renderer))
    gateway.start()
    session = gateway.open_session(SessionSettings(training=True))

    async def allow():
        while True:  # One at a time, so that none are told together.
            backend.allowed += 1
            await asyncio.sleep(0.005)

    async def talk(client):
        allowing = asyncio.ensure_future(allow())
        stream = await client.responses.create(model="any", input=ASK, tools=[CALCULATE, CUSTOM], stream=True)
        events = [event async for event in stream]
        allowing.cancel()
        return events, await client.responses.retrieve(events[-1].response.id)

    events, kept = run(Connection(gateway, httpx2, way == "in process"), session, talk)
    gateway.stop()
    for kind, text in STEPS.items():
        told = [event.delta for event in events if event.type == kind]
        assert "".join(told).strip() == text
        assert len(told) > 1, kind
    assert kept == events[-1].response
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == kept.output
    added = [event.item for event in events if event.type == "response.output_item.added"]
    assert [(item.id, item.type) for item in added] == [(item.id, item.type) for item in kept.output]
    assert {item.status for item in added} == {"in_progress"}
    parts = {(event.type, event.output_index) for event in events if hasattr(event, "output_index")}
    assert {index for kind, index in parts if kind == "response.content_part.done"} == {0, 1}


@pytest.mark.parametrize("stream", [False, True])
def test_an_endpoint_elsewhere_is_asked_for_chat_completions(stream):
    call = {"id": "c1", "type": "function", "function": {"name": "patch", "arguments": '{"input": "a"}'}}
    endpoint = ScriptedEndpoint([{"role": "assistant", "content": "So.", "tool_calls": [call]}])
    gateway = Gateway(RelayCompleter(endpoint))
    session = gateway.open_session(SessionSettings(training=False))
    connection = Connection(gateway, httpx2, in_process=True)
    fields = {"instructions": "Calculate.", "tools": [CUSTOM], "max_output_tokens": 9, "tool_choice": "required"}
    response = streamed(connection, session, **fields)[-1].response if stream else ask(connection, session, **fields)
    gateway.stop()
    assert [(item.type, getattr(item, "input", None)) for item in response.output] == [
        ("message", None),
        ("custom_tool_call", "a"),
    ]
    assert (response.status, response.usage.input_tokens, response.usage.output_tokens) == ("completed", 9, 1)
    (request,) = endpoint.requests
    assert request.body["messages"] == [
        {"role": "system", "content": "Calculate."},
        {"role": "user", "content": ASK},
    ]
    assert request.body["tools"][0]["function"]["name"] == "patch"
    assert (request.body["max_tokens"], request.body["tool_choice"]["function"]) == (9, {"name": "patch"})


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FORMS = [
    ({"text": {"format": {"type": "json_object"}}}, ()),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}}, ()),
    ({"tools": [CALCULATE, CUSTOM], "tool_choice": "required"}, ("calculate", "patch")),
    ({"tools": [CALCULATE, CUSTOM], "tool_choice": {"type": "function", "name": "calculate"}}, ("calculate",)),
    ({"tools": [CALCULATE, CUSTOM], "tool_choice": {"type": "custom", "name": "patch"}}, ("patch",)),
    (
        {
            "tools": [CALCULATE, CUSTOM, {"type": "web_search"}],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "custom", "name": "patch"}, {"type": "web_search"}],
            },
        },
        ("patch",),
    ),
]


@pytest.mark.parametrize(("fields", "called"), FORMS)
def test_a_form_is_a_grammar(in_process, open_session, backend, fields, called):
    backend.says('{"n": 1}')
    ask(in_process, open_session(), **fields)
    grammar = backend.requests[0].sampling.grammar
    assert ('"required": ["n"]' in grammar.text) == ("json_schema" in str(fields))
    assert {name for name in ("calculate", "patch") if name in grammar.text} == set(called)


def test_a_form_that_nobody_can_keep_is_refused_by_its_name_here(renderer):
    gateway = Gateway(EngineCompleter(ScriptedBackend(renderer), Capabilities(CONTEXT, 8), renderer))
    session = gateway.open_session(SessionSettings(training=True))
    connection = Connection(gateway, httpx2, in_process=True)
    error = failed(lambda: ask(connection, session, text={"format": {"type": "json_object"}}))
    gateway.stop()
    assert (error.status_code, error.param) == (400, "text.format")
    assert "rollout.override: {response_format: null}" in error.message


def test_only_allowed_tools_are_offered(in_process, open_session, backend):
    backend.says("It is 408.", "It is 408.")
    session = open_session()
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "calculate"}]}
    ask(in_process, session, tools=[CALCULATE, CUSTOM], tool_choice=choice)
    ask(in_process, session, tools=[CALCULATE])
    assert backend.requests[0].prompt_ids == backend.requests[1].prompt_ids
