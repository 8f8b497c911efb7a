"""Tools, calls and results either reach the model's prompt, or the request is refused and says what would be lost."""

from __future__ import annotations

import json

import openai
import pytest
from tests.gateway.family_gateway import ASK, TOOLS, family_gateway
from tests.tokens.families import FAMILIES

SHOWING = ["qwen2.5", "qwen3", "llama-3.1", "llama-3.2", "mistral", "granite-4", "gpt-oss", "glm-4.5"]
"""Families whose templates show tools, and whose calls are read."""
HIDING = ["llama-3", "gemma", "gemma-3", "phi-3", "phi-3.5", "smollm2", "olmo-2", "deepseek-v3", "deepseek-r1"]
UNREAD = ["olmo-3", "granite-3"]
ARGUMENTS = {"expression": "12 * 34", "exact": True}


def answered(call_id="call_0"):
    """A history in which a tool was called and has answered."""
    function = {"name": "calculate", "arguments": json.dumps(ARGUMENTS)}
    turn = {"role": "assistant", "content": None}
    turn["tool_calls"] = [{"id": call_id, "type": "function", "function": function}]
    return [ASK, turn, {"role": "tool", "tool_call_id": call_id, "content": "the result is 408"}]


def refusal(family, **request):
    """The error of a request that the model is never asked."""
    asked = len(family.backend.requests)
    with pytest.raises(openai.BadRequestError) as refused:
        family.create(family.session(), "It is 408.", **request)
    assert len(family.backend.requests) == asked
    return refused.value


def test_every_family_is_told_apart_here():
    assert {*SHOWING, *HIDING, *UNREAD, "cohere"} == set(FAMILIES)


@pytest.mark.parametrize("name", SHOWING)
def test_tools_calls_and_results_reach_the_prompt_and_calls_come_back_as_calls(name):
    family, session = family_gateway(name), family_gateway(name).session()
    first = family.create(session, family.written_call(ARGUMENTS), tools=TOOLS).choices[0]
    for part in ("calculate", "Works it out.", "expression"):
        assert part in family.prompt
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls
    assert call.function.name == "calculate"
    assert json.loads(call.function.arguments) == ARGUMENTS
    result = {"role": "tool", "tool_call_id": call.id, "content": "the result is 408"}
    family.create(session, "It is 408.", messages=[ASK, first.message, result], tools=TOOLS)
    assert "the result is 408" in family.prompt
    assert family.prompt.count("calculate") >= 2
    assert session.calls[1].parent == session.calls[0].id


@pytest.mark.parametrize("name", HIDING)
def test_tools_that_a_template_never_shows_are_refused_with_the_way_out(name):
    error = refusal(family_gateway(name), tools=TOOLS)
    assert "never shows the names, descriptions and parameters of tools" in error.message
    assert "model.chat_template" in error.message
    assert (error.code, error.param) == ("lost_in_prompt", "tools")


@pytest.mark.parametrize("name", UNREAD)
def test_tools_are_refused_where_the_models_own_calls_could_not_be_read(name):
    error = refusal(family_gateway(name), tools=TOOLS)
    assert "cannot be read" in error.message
    assert "model.chat_template" in error.message
    family = family_gateway(name)
    assert family.create(family.session(), "It is 408.", tools=TOOLS, tool_choice="none").choices[0].message.content


@pytest.mark.parametrize("name", ["llama-3", "smollm2", "phi-3.5", "olmo-2", "granite-3"])
def test_calls_that_a_template_drops_from_history_are_refused(name):
    assert "drops tool calls from the history" in refusal(family_gateway(name), messages=answered()).message


def test_results_that_a_template_drops_are_refused():
    messages = [ASK, {"role": "assistant", "content": "Let me see."}, *answered()[2:]]
    assert "drops results of tools" in refusal(family_gateway("phi-3.5"), messages=messages).message


def test_of_several_calls_or_of_text_beside_calls_nothing_is_dropped():
    ask, turn, result = answered()
    two = {**turn, "tool_calls": [*turn["tool_calls"], {**turn["tool_calls"][0], "id": "call_1"}]}
    messages = [ask, two, result, {**result, "tool_call_id": "call_1"}]
    error = refusal(family_gateway("gpt-oss"), messages=messages, tools=TOOLS)
    assert "all but the first tool call of a turn" in error.message
    beside = [ask, {**turn, "content": "Let me see."}, result]
    assert "drops tool calls beside text" in refusal(family_gateway("deepseek-r1"), messages=beside).message


@pytest.mark.parametrize("name", ["mistral", "llama-3.2"])
def test_text_that_a_template_leaves_out_beside_calls_is_a_fork_with_that_reason(name):
    family, session = family_gateway(name), family_gateway(name).session()
    ask, turn, result = answered()
    family.create(session, "It is 408.", messages=[ask, {**turn, "content": "Let me see."}, result], tools=TOOLS)
    assert "Let me see." not in family.prompt
    assert session.calls[0].fork_reason == "text beside tool calls dropped by the template"


def test_a_completion_in_no_channel_is_text():
    family = family_gateway("gpt-oss")
    assert family.create(family.session(), "408").choices[0].message.content == "408"


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-r1", "mistral"])
def test_a_second_turn_is_rendered_by_templates_that_take_calls_in_another_form(name):
    """Arguments as text, a content that is none, ids of nine letters: whatever the template asks for."""
    family = family_gateway(name)
    family.create(family.session(), "It is 408.", messages=answered("call_1f0c_0"))
    for part in ("calculate", '"expression": "12 * 34"', "the result is 408"):
        assert part in family.prompt


def test_calls_with_parameters_for_arguments_are_read():
    for name, text in [
        ("qwen3", '<tool_call>\n{"name": "calculate", "parameters": {"expression": "1+1"}}\n</tool_call>'),
        ("llama-3.2", '{"name": "calculate", "parameters": {"expression": "1+1"}}'),
        ("llama-3.2", '{"name": "calculate", "arguments": {"expression": "1+1"}}'),
        ("llama-3.1", '<|python_tag|>{"name": "calculate", "parameters": {"expression": "1+1"}}'),
    ]:
        family = family_gateway(name)
        (call,) = family.create(family.session(), text, tools=TOOLS).choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == {"expression": "1+1"}
