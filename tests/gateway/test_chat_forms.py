"""What a chat completion may ask of the form of its answer: which tools are called, and what the text looks like."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import openai
import pytest
from pydantic import BaseModel

from agentrl.gateway.dialects.chat import read_request

ASK = {"role": "user", "content": "What is 12 * 34?"}
CALL = '<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def function(name, **more):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}} | more}


ADD, SUB, MUL = function("add"), function("subtract"), function("multiply")
RUN = {"type": "custom", "custom": {"name": "run", "description": "Runs a command."}}


def allowed(mode, *tools):
    given = [{"type": tool["type"], tool["type"]: {"name": tool[tool["type"]]["name"]}} for tool in tools]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": given}}


@pytest.fixture(autouse=True)
def _grammars(gateway, monkeypatch):
    """The engine has grammars, and biases as well."""
    completer = gateway.completer
    able = replace(completer.capabilities, sampling=completer.capabilities.sampling | {"grammar", "logit_bias"})
    monkeypatch.setattr(completer, "capabilities", able)


def call(connection, session, *messages, **request):
    """The message that the SDK makes of an answer, whole or streamed, and the finish reason."""

    async def create():
        async with connection.client(session, max_retries=0) as client:
            given = {"model": "x", "messages": list(messages) or [ASK]} | request
            if not request.get("stream"):
                return (await client.chat.completions.create(**given)).choices[0]
            return gathered([chunk async for chunk in await client.chat.completions.create(**given)])

    return asyncio.run(create())


def gathered(chunks):
    """A streamed choice put together as clients do."""
    message, finish = {"content": "", "tool_calls": {}, "reasoning_content": ""}, None
    for chunk in chunks:
        for choice in chunk.choices:
            delta = choice.delta.model_dump(exclude_none=True)
            message["content"] += delta.get("content", "")
            message["reasoning_content"] += delta.get("reasoning_content", "")
            for part in delta.get("tool_calls", ()):
                made = message["tool_calls"].setdefault(part["index"], {"function": {"arguments": ""}})
                made |= {key: value for key, value in part.items() if key not in ("index", "function")}
                made["function"] |= {"name": part["function"]["name"]} if "name" in part.get("function", {}) else {}
                made["function"]["arguments"] += part.get("function", {}).get("arguments", "")
            finish = choice.finish_reason or finish
    return message, finish


@pytest.mark.parametrize(
    ("choice", "offered", "forced"),
    [
        ("auto", ["add", "subtract", "multiply"], []),
        ("none", ["add", "subtract", "multiply"], []),
        ("required", ["add", "subtract", "multiply"], ["add", "subtract", "multiply"]),
        ({"type": "function", "function": {"name": "subtract"}}, ["add", "subtract", "multiply"], ["subtract"]),
        (allowed("auto", ADD, SUB), ["add", "subtract"], []),
        (allowed("required", ADD, SUB), ["add", "subtract"], ["add", "subtract"]),
        (allowed("auto"), [], []),
    ],
    ids=str,
)
def test_a_choice_of_tools_is_kept_by_the_prompt_and_by_a_grammar(
    in_process, backend, open_session, choice, offered, forced
):
    backend.says("It is 408.")
    call(in_process, open_session(), tools=[ADD, SUB, MUL], tool_choice=choice)
    (request,) = backend.requests
    prompt = backend.renderer.vocabulary.decode(list(request.prompt_ids))
    assert [name for name in ("add", "subtract", "multiply") if f'"{name}"' in prompt] == offered
    grammar = request.sampling.grammar
    named = [name for name in ("add", "subtract", "multiply") if grammar is not None and name in grammar.text]
    assert named == forced


@pytest.mark.parametrize(
    ("request_", "param", "says"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "divide"}}}, "tool_choice", "one of add"),
        ({"tool_choice": allowed("auto", MUL), "tools": [ADD]}, "tool_choice.tools[0]", "one of add"),
        ({"tool_choice": allowed("sometimes", ADD)}, "tool_choice", "auto or required"),
        ({"tool_choice": allowed("required")}, "tool_choice", "nothing to call"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "rollout.override: {tool_choice: null}"),
        ({"tools": [{"type": "custom", "custom": {"name": ""}}]}, "tools[0].custom.name", "is missing"),
        (
            {"tools": [{"type": "custom", "custom": {"name": "x", "format": {"type": "grammar"}}}]},
            "tools[0].custom.format",
            "holds no grammar",
        ),
        ({"tools": [function("add", strict=True, parameters={"type": "objekt"})]}, None, "'objekt'"),
        ({"tools": [function("add", parameters=[])]}, "tools[0].function.parameters", "no JSON schema"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_choice_that_cannot_be_kept_is_refused(in_process, backend, open_session, request_, param, says):
    with pytest.raises(openai.BadRequestError) as error:
        call(in_process, open_session(), **({"tools": [ADD]} | request_))
    assert says in error.value.message
    assert param is None or error.value.param == param
    assert backend.requests == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_custom_tool_takes_free_text_and_its_call_comes_back(connection, backend, open_session, stream):
    session = open_session()
    given = 'cat "a"\n| wc'
    backend.says(CALL.format(name="run", arguments=json.dumps({"input": given})), "It is 408.")
    answer = call(connection, session, tools=[ADD, RUN], stream=stream)
    if stream:
        message, finish = answer
        (made,) = message["tool_calls"].values()
        made = {key: made[key] for key in ("id", "type", "custom")}
    else:
        finish = answer.finish_reason
        (made,) = [each.model_dump() for each in answer.message.tool_calls]
    assert finish == "tool_calls"
    assert (made["type"], made["custom"]) == ("custom", {"name": "run", "input": given})
    turn = {"role": "assistant", "content": None, "tool_calls": [made]}
    result = {"role": "tool", "tool_call_id": made["id"], "content": "1"}
    call(connection, session, ASK, turn, result, tools=[ADD, RUN])
    first, second = session.calls
    assert (second.parent, second.fork_reason) == (first.id, None)


@pytest.mark.parametrize("arguments", ["{ls}", '{"command": "ls"}', '{"input":"ls",  "cwd": "/"}'])
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_policy_wrote_in_another_form_is_known_when_it_comes_back(
    in_process, backend, open_session, arguments, stream
):
    session = open_session()
    backend.says(CALL.format(name="run", arguments=arguments), "It is 408.")
    answer = call(in_process, session, tools=[RUN], stream=stream)
    made = answer[0]["tool_calls"][0] if stream else answer.message.tool_calls[0].model_dump()
    assert made["custom"]["input"] == ("ls" if '"input"' in arguments else arguments)
    turn = {"role": "assistant", "tool_calls": [{key: made[key] for key in ("id", "type", "custom")}]}
    call(in_process, session, ASK, turn, {"role": "tool", "tool_call_id": made["id"], "content": "1"}, tools=[RUN])
    assert session.calls[1].fork_reason is None
    assert session.calls[1].parent == session.calls[0].id


def test_a_grammar_of_a_custom_tool_is_shown_to_the_policy_and_counted(in_process, backend, open_session):
    backend.says("It is 408.")
    form = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /l+s/"}}
    session = open_session()
    call(in_process, session, tools=[{"type": "custom", "custom": {"name": "run", "format": form}}])
    assert session.calls[0].unmet == ("format",)
    assert "start: /l+s/" in backend.renderer.vocabulary.decode(list(backend.requests[0].prompt_ids))


class Sum(BaseModel):
    total: int


def test_an_answer_is_parsed_as_the_model_that_was_asked_for(connection, backend, open_session):
    backend.says('{"total": 408}')

    async def parse():
        async with connection.client(open_session(), max_retries=0) as client:
            return await client.chat.completions.parse(model="x", messages=[ASK], response_format=Sum)

    assert asyncio.run(parse()).choices[0].message.parsed == Sum(total=408)
    grammar = backend.requests[0].sampling.grammar
    assert grammar is not None
    assert "total" in grammar.text


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_schema_is_kept_strict_or_not_and_an_object_is_any(strict):
    schema = {"type": "object", "properties": {"total": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema, "strict": strict}}
    (asked,) = read_request({"messages": [ASK], "response_format": form})
    assert (asked.grammar.kind, json.loads(asked.grammar.text)) == ("json_schema", schema)
    (asked,) = read_request({"messages": [ASK], "response_format": {"type": "json_object"}})
    assert asked.grammar.kind == "json_object"


def schema_of(**schema):
    return {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}


DEEP: dict[str, object] = {"type": "integer"}
for _ in range(101):
    DEEP = {"items": DEEP}


@pytest.mark.parametrize(
    ("form", "param", "says"),
    [
        ("json", "response_format", "is no form"),
        ({"type": "json_schema"}, "response_format.name", "None"),
        ({"type": "json_schema", "json_schema": 5}, "response_format.json_schema", "not an object"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name", "letters"),
        ({"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}, None, "letters"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "response_format.json_schema.schema", "is missing"),
        ({"type": "json_schema", "json_schema": {"name": "a", "strict": 1, "schema": {}}}, None, "neither true nor"),
        (schema_of(type="objekt"), "response_format.json_schema.schema.type", "'objekt'"),
        (schema_of(type=["string", 5]), "response_format.json_schema.schema.type", "is 5"),
        (schema_of(properties=[]), "response_format.json_schema.schema.properties", "not an object"),
        (schema_of(properties={"a": 5}), "response_format.json_schema.schema.properties.a", "no JSON schema"),
        (schema_of(required=[5]), "response_format.json_schema.schema.required", "no list of names"),
        (schema_of(enum="a"), "response_format.json_schema.schema.enum", "no list"),
        (schema_of(anyOf=[{"type": "x"}]), "response_format.json_schema.schema.anyOf[0].type", "'x'"),
        (schema_of(items={"$ref": 5}), "response_format.json_schema.schema.items.$ref", "not a text"),
        (schema_of(items=DEEP), None, "over 100 schemas deep"),
    ],
    ids=str,
)
def test_a_form_that_is_wrong_says_what_and_where(in_process, backend, open_session, form, param, says):
    with pytest.raises(openai.BadRequestError) as error:
        call(in_process, open_session(), response_format=form)
    assert says in error.value.message
    assert param is None or error.value.param == param
    assert backend.requests == []


def test_the_sdks_own_helper_reads_the_stream(connection, backend, open_session):
    session = open_session()
    arguments = json.dumps({"n": 12})
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    strict = function("add", strict=True, parameters=schema | {"additionalProperties": False})  # openai 2 wants it.
    backend.says("<think>\nHm.\n</think>\n\nLet me see.\n" + CALL.format(name="add", arguments=arguments))

    async def read():
        async with connection.client(session, max_retries=0) as client:
            manager = client.chat.completions.stream(
                model="x", messages=[ASK], tools=[strict], stream_options={"include_usage": True}
            )
            async with manager as stream:
                events = [event async for event in stream]
                return events, await stream.get_final_completion()

    events, completion = asyncio.run(read())
    (recorded,) = session.calls
    message = completion.choices[0].message
    assert message.content == recorded.message["content"]
    assert message.reasoning_content == recorded.message["reasoning_content"]
    assert message.tool_calls[0].function.arguments == recorded.message["tool_calls"][0]["function"]["arguments"]
    assert completion.choices[0].finish_reason == "tool_calls"
    assert completion.usage.completion_tokens == recorded.completion_tokens
    kinds = {event.type for event in events}
    assert {"chunk", "content.delta", "content.done", "tool_calls.function.arguments.done"} <= kinds


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_obfuscation": True}], ids=str)
def test_usage_is_streamed_only_where_it_is_asked_for(in_process, backend, open_session, options):
    backend.says("It is 408.")

    async def read():
        async with in_process.client(open_session(), max_retries=0) as client:
            given = {} if options is None else {"stream_options": options}
            stream = await client.chat.completions.create(model="x", messages=[ASK], stream=True, **given)
            return [chunk async for chunk in stream]

    chunks = asyncio.run(read())
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert all("usage" not in chunk.model_dump(exclude_unset=True) for chunk in chunks)


@pytest.mark.parametrize(
    ("options", "param"),
    [([], "stream_options"), ({"include_usage": 1}, "include_usage"), ({"usage": True}, "stream_options.usage")],
    ids=str,
)
def test_options_of_streams_that_there_are_not_are_refused(in_process, open_session, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        call(in_process, open_session(), stream=True, extra_body={"stream_options": options})
    assert error.value.param == param


def test_biases_reach_an_evaluation_and_are_refused_in_training(in_process, backend, open_session):
    backend.says("It is 408.")
    call(in_process, open_session(training=False), logit_bias={"5": 3.5})
    assert backend.requests[0].sampling.logit_bias == ((5, 3.5),)
    with pytest.raises(openai.BadRequestError, match=r"rollout\.override: \{logit_bias: null\}"):
        call(in_process, open_session(), logit_bias={"5": 3.5})
