"""A gateway in front of an endpoint: what goes through, what the agent is given, and what is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import openai
import pytest

from agentrl.errors import BackendError, GatewayError
from agentrl.gateway import Gateway, RelayCompleter, SessionSettings
from agentrl.inference.contract import ChatCapabilities, ChatCompletion, ChatRequest

ASK = {"role": "user", "content": "What is 1 + 1?"}
IMAGE = {
    "role": "user",
    "content": [{"type": "text", "text": "See:"}, {"type": "image_url", "image_url": {"url": "x"}}],
}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1, "b": 2}'}}
CUSTOM = {"id": "c2", "type": "custom", "custom": {"name": "g", "input": "text"}}


@dataclass
class ScriptedEndpoint:
    """Answers with the messages of the script, or raises what is in it."""

    script: list[object] = field(default_factory=list)
    requests: list[ChatRequest] = field(default_factory=list)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> ChatCapabilities:
        return ChatCapabilities()

    async def stop(self) -> None:
        """Nothing."""

    async def complete(self, request: ChatRequest) -> ChatCompletion:
        self.requests.append(request)
        step = self.script.pop(0) if self.script else {"role": "assistant", "content": "2"}
        if step == "hang":
            self.hanging.set()
            await asyncio.sleep(3600)
        if isinstance(step, Exception):
            raise step
        choice = {"index": 0, "message": step, "finish_reason": "stop", "logprobs": None}
        answer = {"id": "always-this", "model": "gpt-4o-2024", "choices": [choice], "system_fingerprint": "fp"}
        return ChatCompletion(answer, step, "stop", 9, 1)


@pytest.fixture
def endpoint() -> ScriptedEndpoint:
    return ScriptedEndpoint()


@pytest.fixture
def relay(endpoint) -> Iterator[Gateway]:
    gateway = Gateway(RelayCompleter(endpoint))
    yield gateway
    gateway.stop()


def talk(gateway, *requests, **settings):
    """The answers to ``requests``, one after another in one session, and the session."""
    session = gateway.open_session(SessionSettings(**({"training": False} | settings)))
    client = openai.AsyncOpenAI(
        base_url=session.base_url, api_key=session.api_key, http_client=session.http_client, max_retries=0
    )

    async def main():
        return [await client.chat.completions.create(**({"model": "any"} | request)) for request in requests]

    return asyncio.run(main()), session


def test_every_field_goes_through_as_it_was_written(relay, endpoint):
    fields = {
        "tool_choice": "required",
        "response_format": {"type": "json_object"},
        "top_p": 0.5,
        "logit_bias": {"5": 1},
    }
    talk(relay, {"messages": [IMAGE], "extra_body": {"mirostat": 2}, **fields}, temperature=0.7, max_tokens=5)
    (request,) = endpoint.requests
    assert request == ChatRequest({"messages": [IMAGE], "model": "any", "mirostat": 2, **fields}, 0.7, 5)


def test_the_agent_is_given_all_of_the_answer_under_an_id_of_its_own(relay):
    (one, two), session = talk(relay, {"messages": [ASK]}, {"messages": [ASK]})
    assert one.model == "gpt-4o-2024"
    assert one.system_fingerprint == "fp"
    assert one.choices[0].message.content == "2"
    assert one.id != two.id
    assert [call.id for call in session.calls] == [one.id, two.id]


def test_a_call_is_recorded_with_messages_and_usage_and_without_tokens(relay):
    _, session = talk(relay, {"messages": [ASK], "seed": 3}, override={"seed": 4})
    (call,) = session.calls
    assert call.request == {"messages": [ASK], "model": "any", "seed": 4}
    assert call.message == {"role": "assistant", "content": "2"}
    assert (call.finish_reason, call.prompt_tokens, call.completion_tokens) == ("stop", 9, 1)
    assert (call.parent, call.fork_reason, call.overridden) == (None, None, ("seed",))
    assert len(session.tree) == 0


def test_an_agents_own_seed_reaches_the_endpoint_as_another_one_in_every_episode(relay, endpoint):
    for sample in (0, 1, 2, 0):
        talk(relay, {"messages": [ASK], "seed": 42}, seed_key=(0, "eval", 0, 5, sample))
    sent = [request.body["seed"] for request in endpoint.requests]
    assert len(set(sent[:3])) == 3
    assert sent[3] == sent[0]
    assert all(0 <= seed < 2**31 for seed in sent), "as every endpoint takes it"


def test_what_an_endpoint_may_take_for_a_seed_is_left_to_it(relay, endpoint):
    for seed in ("42", True):
        talk(relay, {"messages": [ASK], "seed": seed})
    assert [request.body["seed"] for request in endpoint.requests] == ["42", True]


@pytest.mark.parametrize("asked", [ASK, IMAGE, {"role": "function", "name": "f", "content": {"odd": [1]}}])
@pytest.mark.parametrize(
    ("said", "sent_back"),
    [
        ({"content": "two"}, {"content": [{"type": "text", "text": "two"}]}),
        (
            {"content": None, "tool_calls": [CALL]},
            {"tool_calls": [{**CALL, "function": {"name": "f", "arguments": '{"b":2,"a":1}'}}]},
        ),
        ({"content": None, "tool_calls": [CUSTOM]}, {"tool_calls": [CUSTOM]}),
        ({"content": None, "refusal": "no", "audio": {"id": "a"}}, {"content": ""}),
        ({"content": "two", "reasoning": "one and one"}, {"content": "two"}),
    ],
)
def test_a_conversation_is_known_again_however_a_framework_writes_it(relay, endpoint, asked, said, sent_back):
    endpoint.script = [{"role": "assistant", **said}]
    again = [asked, {"role": "assistant", **sent_back}, {"role": "user", "content": "Sure?"}]
    (first, _), session = talk(relay, {"messages": [asked]}, {"messages": again})
    assert [call.parent for call in session.calls] == [None, first.id]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"stream": "yes"}, "stream='yes' is neither true nor false"),
        ({"n": 0}, "n=0 is not a whole number"),
        ({"messages": "hello"}, "messages is not a list"),
        ({"messages": ["hello"]}, "messages is not a list"),
    ],
)
def test_what_cannot_be_recorded_is_refused_here(relay, endpoint, fields, told):
    with pytest.raises(openai.BadRequestError, match=told):
        talk(relay, {"messages": [ASK], **fields})
    assert endpoint.requests == []


def test_choices_and_streams_are_made_of_whole_answers(relay, endpoint):
    endpoint.script = [{"role": "assistant", "content": text} for text in ("two", "2", "two")]
    (answer,), session = talk(relay, {"messages": [ASK], "n": 2})
    assert sorted(choice.message.content for choice in answer.choices) == ["2", "two"]
    assert [call.id for call in session.calls] == [answer.id, f"{answer.id}-1"]

    async def read():
        client = openai.AsyncOpenAI(base_url=session.base_url, api_key=session.api_key, http_client=session.http_client)
        return [chunk async for chunk in await client.chat.completions.create(model="m", messages=[ASK], stream=True)]

    chunks = asyncio.run(read())
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "two"
    assert all(request.body.keys() == {"model", "messages"} for request in endpoint.requests)


def test_an_endpoints_calls_of_custom_tools_are_passed_back_in_choices_and_streams(relay, endpoint):
    message = {"role": "assistant", "content": None, "tool_calls": [CALL, CUSTOM]}
    endpoint.script = [message] * 3
    tools = [{"type": "custom", "custom": {"name": "g"}}, {"type": "function", "function": {"name": "f"}}]
    asked = {"messages": [ASK], "tools": tools}

    async def streamed(session):
        client = openai.AsyncOpenAI(base_url=session.base_url, api_key=session.api_key, http_client=session.http_client)
        options = {"include_usage": True, "continuous_usage_stats": False}  # The latter is an endpoint's own.
        stream = await client.chat.completions.create(model="x", stream=True, stream_options=options, **asked)
        return [chunk async for chunk in stream]

    (several,), session = talk(relay, asked | {"n": 2})
    for choice in several.choices:
        assert [call.model_dump(exclude_none=True) for call in choice.message.tool_calls] == [CALL, CUSTOM]
    chunks = asyncio.run(streamed(session))
    calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    told = [call.model_dump(exclude_none=True) for call in calls]
    assert sorted(told, key=lambda call: call["index"]) == [{"index": 0, **CALL}, {"index": 1, **CUSTOM}]
    assert chunks[-1].usage is not None


def test_what_the_endpoint_refuses_reaches_the_agent_in_its_words(relay, endpoint):
    endpoint.script = [GatewayError("too warm", status=422, code="odd_value", param="temperature")]
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        talk(relay, {"messages": [ASK]})
    assert caught.value.body == {
        "message": "too warm",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "odd_value",
    }


@pytest.mark.parametrize("error", [BackendError("down"), ValueError("a bug")])
def test_a_failure_behind_the_gateway_is_the_backend_s(relay, endpoint, error):
    endpoint.script = [error]
    session = relay.open_session(SessionSettings(training=False))
    client = openai.AsyncOpenAI(
        base_url=session.base_url, api_key=session.api_key, http_client=session.http_client, max_retries=0
    )
    with pytest.raises(openai.InternalServerError):
        asyncio.run(client.chat.completions.create(model="any", messages=[ASK]))
    assert session.refusals[0].side == "backend"
    assert session.calls == ()


def test_a_failure_that_the_backend_has_tried_to_mend_is_not_tried_again_by_the_agent_s_client(relay, endpoint):
    endpoint.script = [BackendError("answered 503: later")] * 3
    session = relay.open_session(SessionSettings(training=False))
    client = openai.AsyncOpenAI(base_url=session.base_url, api_key=session.api_key, http_client=session.http_client)
    with pytest.raises(openai.InternalServerError, match="later"):
        asyncio.run(client.chat.completions.create(model="any", messages=[ASK]))
    assert len(endpoint.requests) == 1


def test_closing_a_session_ends_its_calls_without_a_trace(relay, endpoint):
    endpoint.script = ["hang"]
    session = relay.open_session(SessionSettings(training=False))

    async def main():
        client = openai.AsyncOpenAI(
            base_url=session.base_url, api_key=session.api_key, http_client=session.http_client, max_retries=0
        )
        call = asyncio.ensure_future(client.chat.completions.create(model="any", messages=[ASK]))
        async with asyncio.timeout(20):
            await endpoint.hanging.wait()
            session.close()
            with pytest.raises(openai.NotFoundError, match="closed"):
                await call

    asyncio.run(main())
    assert session.calls == ()
