"""``rollout.override``: one that a refusal names works, and one that could not is refused by its name."""

from __future__ import annotations

import asyncio
import re

import openai
import pytest
from ruamel.yaml import YAML

from agentrl.errors import ConfigError
from agentrl.gateway.dialects.chat import ChatCompletions

ASK = {"role": "user", "content": "What is 12 * 34?"}
FUNCTION = {"name": "calculate", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FUNCTION}]
STRICT = [{"type": "function", "function": FUNCTION | {"strict": True}}, *TOOLS]


def call(connection, session, **request):
    async def create():
        async with connection.client(session, max_retries=0) as client:
            return await client.chat.completions.create(**({"model": "gpt-5", "messages": [ASK]} | request))

    return asyncio.run(create())


REFUSED = [
    {"n": 0},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {}}}},
    {"tools": TOOLS, "tool_choice": "required"},
    {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "calculate"}}},
    {"modalities": ["text", "audio"]},
    {"max_tokens": 3, "max_completion_tokens": 4},
    {"frequency_penalty": 0.5},
    {"presence_penalty": 0.5},
    {"logit_bias": {"1": 5}},
    {"top_p": 0.9},
    {"extra_body": {"top_k": 5}},
    {"extra_body": {"min_p": 0.1}},
    {"extra_body": {"repetition_penalty": 1.1}},
    {"extra_body": {"guided_json": {}}},
    {"extra_body": {"min_tokens": 5}},
]


@pytest.mark.parametrize("request_", REFUSED, ids=str)
def test_the_override_that_a_refusal_names_works(in_process, backend, open_session, request_):
    with pytest.raises(openai.BadRequestError) as refused:
        call(in_process, open_session(), **request_)
    override = YAML(typ="safe").load(re.search(r"rollout\.override: (\{.*?\})", refused.value.message).group(1))
    ChatCompletions.check_override(override)
    backend.says("It is 408.")
    session = open_session(override=override)
    answer = call(in_process, session, **request_)
    assert [choice.message.content for choice in answer.choices] == ["It is 408."]
    assert set(override) <= set(session.calls[0].overridden)


@pytest.mark.parametrize("field", ["stream", "messages", "model"])
@pytest.mark.parametrize("value", [None, False, True, "x"])
@pytest.mark.parametrize("relayed", [False, True])
def test_what_is_the_agents_own_is_no_matter_of_an_override(relayed, field, value):
    with pytest.raises(
        ConfigError, match=rf"rollout\.override\.{field} cannot be: an override does not change {field}"
    ):
        ChatCompletions.check_override({field: value}, relayed=relayed)


@pytest.mark.parametrize("value", [None, False])
def test_whoever_asks_for_a_stream_is_never_answered_with_an_empty_one(connection, backend, open_session, value):
    session = open_session(override={"stream": value})

    async def read():
        async with connection.client(session, max_retries=0) as client:
            stream = await client.chat.completions.create(model="x", messages=[ASK], stream=True)
            return [chunk async for chunk in stream]

    with pytest.raises(openai.BadRequestError, match=r"rollout\.override cannot change stream .*ask without stream"):
        asyncio.run(read())
    assert (session.calls, backend.requests) == ((), [])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ({"temprature": 1.0}, r"rollout\.override\.temprature=1\.0: requests have no field .*'temperature'"),
        ({"temprature": None}, r"rollout\.override\.temprature=None: requests have no field .*'temperature'"),
        ({"presense_penalty": None}, "did you mean 'presence_penalty'"),
        ({"max_token": 5}, "did you mean 'max_tokens'"),
        ({"guided_json": {}}, r"rollout\.override\.guided_json=\{\}: requests have no field"),
        ({"n": 0}, r"with rollout\.override\.n every call would be refused: n=0"),
        ({"tool_choice": "required"}, r"with rollout\.override\.tool_choice every call"),
        ({"response_format": {"type": "xml"}}, r"with rollout\.override\.response_format every call"),
        ({"modalities": ["audio"]}, r"with rollout\.override\.modalities every call"),
        ({"top_logprobs": 3}, r"with rollout\.override\.top_logprobs every call"),
        ({"parallel_tool_calls": "no"}, r"with rollout\.override\.parallel_tool_calls every call"),
        ({"tools": "none"}, r"with rollout\.override\.tools every call|with rollout\.override every call"),
        (
            {"max_tokens": 3, "max_completion_tokens": 4},
            r"max_tokens and rollout\.override\.max_completion_tokens are one",
        ),
        ({"strict": "no"}, r"rollout\.override\.strict='no'"),
    ],
    ids=str,
)
def test_an_override_under_which_no_call_could_be_answered_is_refused_by_its_key(override, says):
    with pytest.raises(ConfigError, match=says):
        ChatCompletions.check_override(override)


@pytest.mark.parametrize(
    "override",
    [
        {},
        {"temperature": 1.0, "top_p": None, "max_completion_tokens": 4, "seed": 3, "stop": ["\n"]},
        {"n": None, "response_format": None, "tool_choice": None, "parallel_tool_calls": None, "strict": False},
        {"strict": None, "tools": None, "user": None, "logprobs": True, "top_logprobs": 2},
        {"stop_token_ids": None, "min_tokens": None, "prompt_logprobs": None, "reasoning_effort": None, "top_a": None},
    ],
    ids=str,
)
def test_what_an_agent_may_send_can_be_dropped_or_replaced(override):
    ChatCompletions.check_override(override)


def test_a_field_of_an_endpoints_own_may_be_set_for_it():
    override = {"chat_template_kwargs": {"thinking": False}, "tool_choice": "required", "strict": True}
    ChatCompletions.check_override(override, relayed=True)
    with pytest.raises(ConfigError, match=r"rollout\.override\.n every call"):
        ChatCompletions.check_override({"n": 0}, relayed=True)


def test_a_strict_tool_is_answered_and_counted_as_unmet(connection, backend, open_session):
    """Half of all frameworks write it into every tool."""
    backend.says("It is 408.")
    session = open_session()
    assert call(connection, session, tools=STRICT).choices[0].message.content == "It is 408."
    assert session.calls[0].unmet == ("strict",)
    assert session.calls[0].overridden == ()


@pytest.mark.parametrize("strict", [False, None])
def test_under_an_override_a_strict_tool_is_one_that_is_not(connection, backend, open_session, strict):
    backend.says("It is 408.", "It is 408.")
    session = open_session(override={"strict": strict})
    call(connection, session, tools=STRICT[:1])
    call(connection, session, tools=TOOLS)
    assert [made.unmet for made in session.calls] == [(), ()]
    assert [made.overridden for made in session.calls] == [("strict",), ()]
    one, other = (list(request.prompt_ids) for request in backend.requests)
    assert one == other


def test_a_strict_that_is_neither_true_nor_false_is_refused(connection, open_session):
    with pytest.raises(openai.BadRequestError, match=r"tools\[0\]\.function\.strict is neither true nor false: 'yes'"):
        call(connection, open_session(), tools=[{"type": "function", "function": FUNCTION | {"strict": "yes"}}])
