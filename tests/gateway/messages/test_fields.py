"""The fields of a request: granted, without effect, counted where they cannot be granted, or refused. None is lost."""

from __future__ import annotations

import json
import re

import anthropic
import pytest
from tests.gateway.conftest import CONTEXT
from tests.gateway.messages.conftest import ASK, CALL, TOOLS

from agentrl.gateway.contract import SessionSettings, WireRequest
from agentrl.gateway.dialects.messages.dialect import Messages
from agentrl.gateway.dialects.messages.request import FIELDS
from agentrl.gateway.openapi import document
from agentrl.inference.contract import Capabilities, Grammar

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


def read(**fields):
    """A request as it reaches the model."""
    body = {"model": "any", "max_tokens": 100, "messages": ASK} | fields
    dialect = Messages()
    return dialect.parse(WireRequest("POST", dialect.routes[0], {}, {}, body, SessionSettings(training=True)))


NO_EFFECT = {
    "metadata": {"metadata": {"user_id": "user_1"}},
    "service_tier": {"service_tier": "auto"},
    "cache_control": {"cache_control": {"type": "ephemeral"}},
    "blocks that are cached": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]} | CACHED]}]
    },
    "a tool that is cached": {"tools": [TOOLS[0] | CACHED | {"type": "custom", "eager_input_streaming": True}]},
    "betas": {"betas": ["context-1m-2025-08-07", "interleaved-thinking-2025-05-14"]},
    "speed": {"speed": "standard"},
    "neutral sampling": {"top_p": 1.0, "temperature": 1.0},
    "adaptive thinking": {"thinking": {"type": "adaptive", "display": "summarized"}},
    "context that is kept": {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
    "nothing": {"container": None, "mcp_servers": [], "stop_sequences": [], "output_config": {}, "fallbacks": None},
    "a choice that is free": {"tool_choice": {"type": "auto", "disable_parallel_tool_use": False}},
}


@pytest.mark.parametrize("fields", NO_EFFECT.values(), ids=NO_EFFECT)
def test_what_has_no_effect_on_the_answer_changes_nothing(whole, open_session, backend, fields):
    backend.says("It is 408.", "It is 408.")
    whole.beta = True
    plain, session = open_session(), open_session()
    whole.ask(plain, tools=TOOLS)
    whole.ask(session, extra_body={"tools": TOOLS} | fields)
    assert backend.requests[0].prompt_ids == backend.requests[1].prompt_ids
    assert backend.requests[0].sampling.stop == backend.requests[1].sampling.stop
    assert session.calls[0].unmet == ()


COUNTED = {
    "thinking.budget_tokens": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    "thinking": {"thinking": {"type": "between_tools"}},
    "context_management": {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
    "container": {"container": "container_1"},
    "mcp_servers": {"mcp_servers": [{"type": "url", "name": "files", "url": "https://mcp.invalid"}]},
    "output_config.task_budget": {"output_config": {"task_budget": {"type": "tokens", "total": 100}}},
    "web_search_20250305": {"tools": [*TOOLS, SEARCH]},
    "mcp_toolset": {"tools": [{"type": "mcp_toolset", "mcp_server_name": "files"}, *TOOLS]},
    "input_examples": {"tools": [TOOLS[0] | {"input_examples": [{"n": 12}]}]},
    "defer_loading": {"tools": [TOOLS[0] | {"defer_loading": True}]},
    "allowed_callers": {
        "tools": [*TOOLS, TOOLS[0] | {"name": "other", "allowed_callers": ["code_execution_20250825"]}]
    },
    "strict": {"tools": [TOOLS[0] | {"strict": True, "input_schema": SCHEMA}]},
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_cannot_be_granted_is_left_out_and_counted(whole, open_session, backend, name):
    backend.says("It is 408.", "It is 408.")
    whole.beta = True
    session = open_session()
    whole.ask(session, extra_body={"tools": TOOLS} | COUNTED[name])
    assert [each for each in session.calls[0].unmet if each != "enable_thinking"] == [name]
    if name != "strict":
        whole.ask(open_session(), tools=TOOLS)
        assert backend.requests[0].prompt_ids == backend.requests[1].prompt_ids


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Hi."}}
REFUSED = {
    "an image": ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0 is not text but 'image'"),
    "a document": ({"messages": [{"role": "user", "content": [DOCUMENT]}]}, "content.0 is not text but 'document'"),
    "an image of a tool": (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": [IMAGE]}]}]},
        "messages.0.content.0.content.0 is not text but 'image'",
    ),
    "an image of the system": ({"system": [IMAGE]}, "system.0 is not text but 'image'"),
    "a server's tool in the history": (
        {"messages": [*ASK, {"role": "assistant", "content": [{"type": "server_tool_use", "id": "x"}]}, *ASK]},
        "messages.1.content.0 is not text but 'server_tool_use'",
    ),
    "no messages": ({"messages": []}, "messages is not a list of at least one message"),
    "a role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role is 'tool' (one of user, assistant"),
    "no content": ({"messages": [{"role": "user"}]}, "messages.0.content is neither a text nor a list of blocks: None"),
    "a number": ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content is neither a text"),
    "no type": ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages.0.content.0 is no block"),
    "an unknown field": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "texture": "y"}]}]},
        "messages.0.content.0.texture is not a field",
    ),
    "no input": (
        {"messages": [*ASK, {"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "y"}]}, *ASK]},
        "messages.1.content.0.input is not an object: None",
    ),
    "a turn to go on with": (
        {"messages": [*ASK, {"role": "assistant", "content": "It is"}]},
        "ends with a message of the assistant",
    ),
    "no limit": ({"max_tokens": None}, "max_tokens is missing"),
    "limit 0": ({"max_tokens": 0}, "max_tokens=0 is not a whole number of at least 1"),
    "top_k": ({"top_k": 5}, "top_k=5 changes the distribution"),
    "top_p": ({"top_p": 0.9}, "rollout.override: {top_p: null}"),
    "temperature 0": ({"temperature": 0}, "temperature=0 samples every episode alike"),
    "stop": ({"stop_sequences": "stop"}, "stop_sequences='stop' is not a list of texts"),
    "a field of chat": ({"stop": ["x"]}, "stop=['x'] is not a field that can be honoured here"),
    "a misspelling": ({"stop_sequence": ["x"]}, "did you mean 'stop_sequences'?"),
    "thinking": ({"thinking": {"type": "deep"}}, "thinking={'type': 'deep'} is no way of thinking"),
    "a budget": ({"thinking": {"type": "enabled", "budget_tokens": "1k"}}, "thinking.budget_tokens='1k' is not"),
    "an effort": ({"output_config": {"effort": "huge"}}, "output_config.effort='huge' is none of low, medium"),
    "a config": ({"output_config": {"form": 1}}, "output_config.form=1 is not a field"),
    "a format": ({"output_config": {"format": {"type": "regex"}}}, "output_config.format={'type': 'regex'} is no form"),
    "no schema": ({"output_format": {"type": "json_schema"}}, "output_format.schema is no JSON schema: None"),
    "edits": ({"context_management": {"edits": ["x"]}}, "context_management holds no list of edits"),
    "tools": ({"tools": {"name": "x"}}, "tools is not a list"),
    "a tool without a name": ({"tools": [{"input_schema": {}}]}, "tools.0.name is missing"),
    "a tool without a schema": ({"tools": [{"name": "x"}]}, "tools.0.input_schema is no JSON schema: None"),
    "a tool of a type": (
        {"tools": [{"type": "function", "name": "x", "input_schema": {}}]},
        "tools.0.type is 'function' (a tool with an input_schema is of type custom)",
    ),
    "a tool's field": ({"tools": [TOOLS[0] | {"parameters": {}}]}, "tools.0.parameters is not a field"),
    "a choice": ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice='any' is no way of choosing a tool"),
    "a choice of nothing": ({"tool_choice": {"type": "any"}}, "has nothing to call"),
    "a choice of no tool": (
        {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "divide"}},
        "tool_choice.name names none of the tools: 'divide' (one of calculate)",
    ),
    "a choice of a tool that was left out": (
        {"tools": [SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}},
        "no tool of the client's is there",
    ),
    "a thread": ({"thread": {"type": "create"}}, "is not a field that can be honoured here"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_or_granted_is_refused_in_the_shape_of_the_api(whole, open_session, backend, what):
    fields, message = REFUSED[what]
    backend.says("It is 408.")
    session = open_session()
    sent = {"max_tokens": 10, "messages": ASK} | fields
    with pytest.raises(anthropic.BadRequestError) as caught:
        whole.ask(session, extra_body={"model": "any", **sent})
    body = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert message in body["error"]["message"]
    assert body["request_id"] == caught.value.request_id
    assert not session.calls
    assert not backend.requests
    assert whole.ask(session).content[0].text == "It is 408."


def test_tools_whose_input_the_api_defines_are_functions_of_the_policy(
    whole, gateway, open_session, backend, monkeypatch
):
    monkeypatch.setattr(gateway.completer, "capabilities", Capabilities(context_length=8192, max_concurrency=8))
    backend.says('<tool_call>\n{"name": "bash", "arguments": {"command": "ls"}}\n</tool_call>')
    tools = [
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 10000},
        {"type": "text_editor_20250124", "name": "str_replace_editor"},
        {"type": "memory_20250818", "name": "memory"},
    ]
    session = open_session()
    whole.beta = True
    (use,) = whole.ask(session, tools=tools).content
    assert (use.name, use.input) == ("bash", {"command": "ls"})
    prompt = backend.renderer.vocabulary.decode(backend.requests[0].prompt_ids)
    for tool in tools:
        assert f'"name": "{tool["name"]}"' in prompt
    assert session.calls[0].unmet == ()


CHOICES = {
    "none": ({"type": "none"}, (False, (), False)),
    "auto": ({"type": "auto"}, (True, (), False)),
    "any": ({"type": "any"}, (True, ("calculate", "search"), False)),
    "one": ({"type": "tool", "name": "search"}, (True, ("search",), False)),
    "any, one call": ({"type": "any", "disable_parallel_tool_use": True}, (True, ("calculate", "search"), True)),
    "auto, one call": ({"type": "auto", "disable_parallel_tool_use": True}, (True, (), True)),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_of_tools_becomes_what_has_to_be_called(choice):
    given, expected = CHOICES[choice]
    tools = [*TOOLS, {"name": "search", "input_schema": {"type": "object"}}]
    asked = read(tools=tools, tool_choice=given)
    assert (asked.calls_tools, asked.must_call, asked.one_call) == expected
    assert len(asked.tools) == 2


def test_a_choice_of_none_leaves_calls_in_the_text(asks, open_session, backend):
    backend.says(CALL)
    answer = asks.ask(open_session(), tools=TOOLS, tool_choice={"type": "none"})
    assert [block.type for block in answer.content] == ["text"]
    assert "calculate" in answer.content[0].text
    assert answer.stop_reason == "end_turn"


def test_one_call_ends_the_answer_where_several_are_disabled(whole, open_session, backend):
    backend.says(CALL)
    whole.ask(open_session(), tools=TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert backend.renderer.tool_end_id in backend.requests[0].sampling.stop_ids


@pytest.mark.parametrize("fields", [{"output_config": {"format": FORMAT}}, {"output_format": FORMAT}])
def test_the_form_of_an_answer_becomes_a_grammar(fields):
    assert read(**fields).grammar == Grammar("json_schema", json.dumps(SCHEMA))


def test_thinking_and_effort_are_what_a_chat_template_may_read():
    assert read(thinking={"type": "enabled", "budget_tokens": 2048}).preferences == {"enable_thinking": True}
    assert read(thinking={"type": "disabled"}).preferences == {"enable_thinking": False}
    assert read(thinking={"type": "adaptive"}).preferences == {}
    assert read(output_config={"effort": "low"}).preferences == {"reasoning_effort": "low"}


OVERRIDES = {
    "temperature": ({"temperature": 1.0}, {"temperature": 0.3}, ("temperature",)),
    "top_k": ({"top_k": None}, {"top_k": 5}, ("top_k",)),
    "limit": ({"max_completion_tokens": 7}, {"max_tokens": 500}, ("max_tokens",)),
    "stop": ({"stop": None}, {"stop_sequences": ["x"]}, ("stop_sequences",)),
    "no form": ({"response_format": None}, {"output_config": {"format": FORMAT}}, ("output_config.format",)),
    "no older form": ({"response_format": None}, {"output_format": FORMAT}, ("output_config.format",)),
    "no choice": ({"tool_choice": None}, {"tool_choice": {"type": "any"}}, ("tool_choice",)),
    "several calls": (
        {"parallel_tool_calls": None},
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ("tool_choice.disable_parallel_tool_use",),
    ),
    "not strict": ({"strict": False}, {"tools": [TOOLS[0] | {"strict": True}]}, ("strict",)),
    "no thinking": ({"thinking": None}, {"thinking": {"type": "disabled"}}, ("thinking",)),
    "no effort": ({"reasoning_effort": None}, {"output_config": {"effort": "max"}}, ("output_config.effort",)),
    "what nobody asked for": ({"seed": 7, "presence_penalty": None, "strict": False}, {}, ()),
}


@pytest.mark.parametrize("what", OVERRIDES)
def test_an_override_changes_requests_of_this_api_too(whole, open_session, backend, what):
    override, fields, overridden = OVERRIDES[what]
    backend.says("It is 408.")
    session = open_session(override=override)
    whole.ask(session, extra_body={"tools": TOOLS} | fields)
    assert session.calls[0].overridden == overridden
    assert session.calls[0].unmet == ()
    sampling = backend.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.stop, sampling.grammar) == (1.0, 0, (), None)


def test_without_a_limit_of_its_own_an_answer_has_that_of_the_run(whole, open_session, backend):
    backend.says("It is 408.")
    whole.ask(open_session(override={"max_tokens": None}, max_tokens=12))
    assert backend.requests[0].sampling.max_tokens == 12


def test_the_document_names_the_fields_that_are_read():
    schemas = Messages().describe()["components"]["schemas"]
    for name in ("Request", "CountRequest"):
        assert set(schemas[name]["properties"]) == FIELDS
        assert not schemas[name]["additionalProperties"]
    named = json.dumps(document([Messages()]))
    for reference in re.findall(r"#/components/schemas/([\w.]+)", named):
        assert reference.removeprefix("Messages.") in schemas


FORCED = {
    "any": ({"tool_choice": {"type": "any"}}, CALL, "tool_use"),
    "one": ({"tool_choice": {"type": "tool", "name": "calculate"}}, CALL, "tool_use"),
    "strict": ({"tools": [TOOLS[0] | {"strict": True, "input_schema": SCHEMA}]}, CALL, "tool_use"),
    "a form": ({"output_config": {"format": FORMAT}}, '{"n": 12}', "end_turn"),
}


@pytest.mark.parametrize("what", FORCED)
def test_what_has_to_be_written_is_sampled_under_a_grammar_where_there_are_grammars(
    asks, gateway, open_session, backend, monkeypatch, what
):
    fields, said, reason = FORCED[what]
    sampling = gateway.completer.capabilities.sampling | {"grammar"}
    monkeypatch.setattr(gateway.completer, "capabilities", Capabilities(CONTEXT, 8, sampling=sampling))
    backend.says(said)
    session = open_session()
    answer = asks.ask(session, extra_body={"tools": TOOLS} | fields)
    assert answer.stop_reason == reason
    assert backend.requests[0].sampling.grammar is not None
    assert session.tree.spans[-1].sampled.constrained
    assert session.calls[0].unmet == ()


@pytest.mark.parametrize("what", ["any", "a form"])
def test_without_grammars_it_is_refused_with_an_override_that_helps(whole, open_session, backend, what):
    fields, said, _ = FORCED[what]
    with pytest.raises(anthropic.BadRequestError, match="rollout") as caught:
        whole.ask(open_session(), extra_body={"tools": TOOLS} | fields)
    name = "tool_choice" if what == "any" else "response_format"
    assert f"{{{name}: null}}" in caught.value.message
    backend.says(said)
    session = open_session(override={name: None})
    whole.ask(session, extra_body={"tools": TOOLS} | fields)
    assert len(session.calls[0].overridden) == 1
