"""Chat completions as the SDK sees them, in process and over HTTP."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

TOOLS = [{"type": "function", "function": {"name": "calculate", "parameters": {"type": "object"}}}]
ASK = {"role": "user", "content": "What is 12 * 34?"}


def call(connection, session, **request):
    """One request of an SDK client; returns what ``create`` returns."""

    async def create():
        async with connection.client(session, max_retries=2) as client:
            return await client.chat.completions.create(**({"model": "gpt-5", "messages": [ASK]} | request))

    return asyncio.run(create())


def refused(connection, session, **request):
    """The body of the error that one request is refused with."""
    with pytest.raises(openai.BadRequestError) as error:
        call(connection, session, **request)
    return error.value


def test_an_answer_has_the_shape_that_the_sdk_knows(connection, backend, open_session):
    backend.says("It is 408.")
    session = open_session(model="policy")
    completion = call(connection, session)
    assert completion.object == "chat.completion"
    assert completion.model == "policy"
    assert completion.choices[0].message.content == "It is 408."
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.choices[0].logprobs is None
    assert completion._request_id == completion.id == session.calls[0].id
    assert completion.usage.prompt_tokens == len(backend.requests[0].prompt_ids)
    assert completion.usage.completion_tokens == len(session.tree.spans[-1].ids)
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_tool_calls_go_out_and_their_results_come_back(connection, backend, open_session):
    session = open_session()
    written = backend.spells('<tool_call>\n{"name": "calculate", "arguments": {"by": "é", "n": 12}}\n</tool_call>')
    backend.says("It is 408.")

    async def agent():
        async with connection.client(session) as client:
            create = client.chat.completions.create
            first = await create(model="x", messages=[ASK], tools=TOOLS, tool_choice="auto", parallel_tool_calls=True)
            (tool_call,) = first.choices[0].message.tool_calls
            result = {"role": "tool", "tool_call_id": tool_call.id, "content": "408"}
            await create(model="x", messages=[ASK, first.choices[0].message, result], tools=TOOLS)
            return first.choices[0], tool_call

    choice, tool_call = asyncio.run(agent())
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert tool_call.type == "function"
    assert tool_call.function.name == "calculate"
    assert json.loads(tool_call.function.arguments) == {"by": "é", "n": 12}
    before, after = (list(request.prompt_ids) for request in backend.requests)
    assert after[: len(before) + len(written)] == before + written
    assert session.calls[1].fork_reason is None


def test_malformed_arguments_reach_the_agent(connection, backend, open_session):
    backend.says('<tool_call>\n{"name": "calculate", "arguments": {12 * 34}}\n</tool_call>')
    (tool_call,) = call(connection, open_session(), tools=TOOLS).choices[0].message.tool_calls
    assert tool_call.function.arguments == "{12 * 34}"


def test_with_tool_choice_none_a_call_is_text(connection, backend, open_session):
    text = '<tool_call>\n{"name": "calculate", "arguments": {}}\n</tool_call>'
    backend.says(text)
    choice = call(connection, open_session(), tools=TOOLS, tool_choice="none").choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content == text


def test_without_parallel_calls_the_turn_ends_with_its_first(connection, backend, open_session):
    backend.says("It is 408.")
    call(connection, open_session(), tools=TOOLS, parallel_tool_calls=False)
    assert backend.renderer.vocabulary.special_id("</tool_call>") in backend.requests[0].sampling.stop_ids


def test_logprobs_come_in_the_apis_shape(connection, backend, open_session):
    ids = backend.renderer.vocabulary.encode("é!")
    backend.script = [backend.chunk(ids, top_logprobs=tuple(((token, -0.5), (0, -2.0)) for token in ids))]
    choice = call(connection, open_session(), logprobs=True, top_logprobs=2).choices[0]
    entries = choice.logprobs.content
    assert bytes(byte for entry in entries for byte in entry.bytes) == "é!".encode()
    assert [entry.logprob for entry in entries] == [-0.01 * (n + 1) for n in range(len(ids))]
    assert [[top.logprob for top in entry.top_logprobs] for entry in entries] == [[-0.5, -2.0]] * len(ids)
    assert backend.requests[0].sampling.top_logprobs == 2


def test_a_completion_cut_by_its_limit_says_so(connection, backend, open_session):
    backend.script = [backend.chunk(backend.renderer.vocabulary.encode("It is"), finish="length")]
    assert call(connection, open_session(), max_tokens=2).choices[0].finish_reason == "length"


def test_sampling_fields_reach_the_backend(connection, backend, open_session):
    backend.says("It is 408.")
    call(connection, open_session(), temperature=0.7, max_completion_tokens=9, stop=["\n", "."])
    sampling = backend.requests[0].sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.stop) == (0.7, 9, ("\n", "."))
    assert backend.renderer.stop_ids <= sampling.stop_ids


def test_the_sessions_defaults_hold_where_a_request_is_silent(connection, backend, open_session):
    backend.says("It is 408.")
    session = open_session(temperature=0.9, max_tokens=5)
    call(connection, session)
    assert (backend.requests[0].sampling.temperature, backend.requests[0].sampling.max_tokens) == (0.9, 5)
    assert session.tree.spans[-1].sampled.temperature == 0.9


def test_text_before_a_stop_string_is_what_the_agent_sees(connection, backend, open_session):
    ids = backend.renderer.vocabulary.encode("It is 408. Observation: none")
    backend.script = [backend.chunk(ids, stop_string=" Obs")]
    session = open_session()
    assert call(connection, session, stop=" Obs").choices[0].message.content == "It is 408."
    assert list(session.tree.spans[-1].ids) == ids


@pytest.mark.parametrize(
    ("request_", "param", "says"),
    [
        ({"stream": "yes"}, "stream", "neither true nor false"),
        ({"n": 0}, "n", "not a whole number from 1"),
        ({"tools": TOOLS, "tool_choice": "some"}, "tool_choice", "'none', 'auto', 'required', one tool"),
        ({"tool_choice": "required"}, "tool_choice", "the request has no tools"),
        ({"functions": [{"name": "f"}]}, "functions", "send tools"),
        ({"function_call": "auto"}, "function_call", "send tool_choice"),
        ({"web_search_options": {"user_location": None}}, "web_search_options", "a search tool"),
        ({"audio": {"format": "wav", "voice": "ash"}}, "audio", "writes text only"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "set stream: true"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_object and json_schema"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "rollout.override: {frequency_penalty: null}"),
        ({"presence_penalty": 0.5}, "presence_penalty", "rollout.override"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "rollout.override: {logit_bias: null}"),
        ({"top_p": 0.9}, "top_p", "rollout.override: {top_p: null}"),
        ({"temperature": 0}, "temperature", "rollout.override.temperature"),
        ({"extra_body": {"top_k": 5}}, "top_k", "rollout.override: {top_k: null}"),
        ({"extra_body": {"min_p": 0.1}}, "min_p", "rollout.override: {min_p: null}"),
        ({"extra_body": {"temprature": 1}}, "temprature", "did you mean 'temperature'?"),
        ({"extra_body": {"guided_json": {}}}, "guided_json", "guided_json={} is not a field"),
        ({"reasoning_effort": "some"}, "reasoning_effort", "is none of none, minimal, low"),
        ({"verbosity": "loud"}, "verbosity", "is none of low, medium, high"),
        ({"temperature": "hot"}, "temperature", "is not a number of 0 or more"),
        ({"temperature": 10**400}, "temperature", "is not a number of 0 or more"),
        ({"temperature": True}, "temperature", "is not a number of 0 or more"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "contradicts"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs: true"),
        ({"stop": [""]}, "stop", "list of texts"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'robot'"),
        ({"messages": [ASK, {"role": "user"}]}, "messages[1].content", "is missing"),
        ({"messages": [ASK | {"mood": "good"}]}, "messages[0].mood", "cannot be used"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
            "reads text only",
        ),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]},
            "messages[1].tool_calls[0].function.arguments",
            "is not a text",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "functions and custom tools only"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_honoured_is_refused_once_with_its_fix(
    http, backend, open_session, answered, request_, param, says
):
    session = open_session()
    error = refused(http, session, **request_)
    assert error.param == param
    assert says in error.message
    assert len(answered) == 1
    assert (session.calls, len(session.tree), backend.requests) == ((), 0, [])
    assert len(session.refusals) == 1


@pytest.mark.parametrize(
    "request_",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "prompt_cache_key": "k"},
        {"n": 1, "stream": False, "response_format": {"type": "text"}, "modalities": ["text"]},
        {"top_p": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "extra_body": {"top_k": -1}},
        {"temperature": None, "stop": None, "seed": None, "tools": [], "extra_body": {"anything": None}},
        {
            "messages": [
                ASK | {"name": "ann"},
                {"role": "assistant", "content": "x", "refusal": None, "annotations": []},
            ]
        },
    ],
)
def test_what_changes_nothing_is_accepted(connection, backend, open_session, request_):
    backend.says("It is 408.")
    assert call(connection, open_session(), **request_).choices[0].message.content == "It is 408."


def test_an_evaluation_may_sample_as_it_likes(connection, backend, open_session):
    backend.says("It is 408.")
    call(connection, open_session(training=False), temperature=0, top_p=0.5, extra_body={"top_k": 3})
    sampling = backend.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.5, 3)


def test_an_evaluation_is_refused_what_the_backend_cannot_do(connection, open_session):
    error = refused(connection, open_session(training=False), presence_penalty=1)
    assert "not supported by the inference backend" in error.message


def test_a_nucleus_is_a_share(connection, open_session):
    assert "from 0 to 1" in refused(connection, open_session(training=False), top_p=1.5).message


def test_an_override_replaces_and_drops_and_is_counted(connection, backend, open_session):
    backend.says("It is 408.")
    session = open_session(override={"temperature": 1.0, "top_p": None, "max_tokens": 4})
    call(connection, session, temperature=0, top_p=0.5, max_completion_tokens=100)
    sampling = backend.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 1.0, 4)
    assert session.calls[0].overridden == ("max_completion_tokens", "temperature", "top_p")
    assert session.calls[0].request["temperature"] == 1.0


def test_an_override_that_changes_nothing_is_not_counted(connection, backend, open_session):
    backend.says("It is 408.")
    session = open_session(override={"temperature": 1.0, "top_p": None})
    call(connection, session, temperature=1.0)
    assert session.calls[0].overridden == ()


def test_a_prompt_that_does_not_fit_is_a_400_that_names_both_lengths(connection, open_session, answered):
    error = refused(connection, open_session(), messages=[{"role": "user", "content": "x " * 2000}])
    assert error.code == "context_length_exceeded"
    assert "come to 4" in error.message
    assert "the context of 1024" in error.message
    assert len(answered) == 1


def test_a_completion_may_take_what_the_context_leaves(connection, backend, open_session):
    backend.says("It is 408.")
    call(connection, open_session(), max_tokens=5000)
    request = backend.requests[0]
    assert request.sampling.max_tokens == 1024 - len(request.prompt_ids)


def post(connection, session, path, **request):
    async def send():
        client = connection.client(session)
        async with client as api:
            return await api._client.post(f"{session.base_url}{path}", **request)

    return asyncio.run(send())


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff\xfe"])
def test_a_body_that_is_no_json_object_is_a_400(connection, open_session, body):
    response = post(connection, open_session(), "/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"


def test_another_route_is_a_404_that_says_what_there_is(connection, open_session):
    response = post(connection, open_session(), "/embeddings", json={})
    assert response.status_code == 404
    assert "POST /v1/chat/completions" in response.json()["error"]["message"]


def test_the_policy_is_the_one_model_there_is(connection, open_session):
    async def models():
        async with connection.client(open_session(model="policy")) as client:
            return [model.id async for model in client.models.list()]

    assert asyncio.run(models()) == ["policy"]


def test_a_plain_sync_client_is_served_over_http(http, backend, open_session):
    backend.says("It is 408.")
    session = open_session()
    with openai.OpenAI(base_url=session.base_url, api_key=session.api_key) as client:
        completion = client.chat.completions.create(model="x", messages=[ASK])
    assert completion.choices[0].message.content == "It is 408."
    assert len(session.calls) == 1


def test_a_tool_that_is_not_strict_reads_as_one_that_does_not_say(http, backend, open_session):
    session = open_session()
    for strict in ({}, {"strict": False}, {"strict": None}):
        backend.says("Hello")
        call(http, session, tools=[{"type": "function", "function": TOOLS[0]["function"] | strict}])
    assert len({tuple(request.prompt_ids) for request in backend.requests}) == 1
