"""Calls in JSON, read between the marks that a template writes, whatever tokens spell them."""

from __future__ import annotations

import json

import pytest
from tests.gateway.family_gateway import ASK, TOOLS
from tests.tokens.families import FAMILIES, tokenizer

from agentrl.tokens.selection import load_renderer

GRANITE = FAMILIES["granite-4"].template.replace("<|start_of_role|>", "<|").replace("<|end_of_role|>", "|>")
BARE = (
    GRANITE.replace("'<tool_call>\\n{", "'{")
    .replace("'}\\n</tool_call>'", "'}'")
    .replace('"arguments": \' -', '"parameters": \' -')
    .replace("m.tool_calls or []", "(m.tool_calls or [])[:2 - (m.tool_calls or []) | length]")
)
"""One that writes a call alone, and nothing of several."""


@pytest.fixture(scope="module", params=["<|im_end|>", "</s>"])
def plain(request):
    """A reader by a template whose marks are text for the vocabulary."""
    tokens = tokenizer("smollm2" if request.param == "<|im_end|>" else "mistral")
    tokens.chat_template = GRANITE.replace("<|end_of_text|>", request.param)
    renderer = load_renderer(tokens)
    assert renderer.vocabulary.special_id("<tool_call>") is None
    assert renderer.abilities.tools
    return renderer, request.param


def read(renderer, text, tools=TOOLS):
    message = renderer.parse(renderer.vocabulary.encode(text), tools, renderer.render([ASK], tools))
    calls = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", [])]
    return message["content"], calls


def test_marks_need_not_be_tokens(plain):
    renderer, end = plain
    text = 'Let me see.\n<tool_call>\n{"name": "calculate", "arguments": {"a":  1}}\n</tool_call>'
    content, calls = read(renderer, text + end)
    assert content.strip() == "Let me see."
    assert calls == [("calculate", '{"a":  1}')]
    two = f"{text}\n<tool_call>\n" + '{"name": "now", "arguments": {}}\n</tool_call>' + end
    assert [name for name, _ in read(renderer, two)[1]] == ["calculate", "now"]


def test_a_broken_call_is_one_with_what_the_policy_wrote_for_its_arguments(plain):
    renderer, end = plain
    text = '<tool_call>\n{"name": "calculate", "arguments": {12 * 34}}\n</tool_call>' + end
    assert read(renderer, text) == (None, [("calculate", "{12 * 34}")])


def test_without_tools_a_call_is_text(plain):
    renderer, end = plain
    text = '<tool_call>\n{"name": "calculate", "arguments": {}}\n</tool_call>'
    assert read(renderer, text + end, None) == (text, [])


def test_a_form_without_marks_is_a_turn_that_is_nothing_but_a_call():
    tokens = tokenizer("smollm2")
    tokens.chat_template = BARE.replace("<|end_of_text|>", "<|im_end|>")
    renderer = load_renderer(tokens)
    assert renderer.abilities.reads
    call = '{"name": "calculate", "parameters": {"a": 1}}'
    assert read(renderer, call + "<|im_end|>") == (None, [("calculate", '{"a": 1}')])
    for text in (f"So: {call}", f"{call} it is", '{"nom": "calculate"}', '{"name": "calculate", "parameters": {'):
        assert read(renderer, text + "<|im_end|>") == (text, [])


def test_a_list_of_calls_is_read_and_ids_are_the_models_own():
    renderer = load_renderer(tokenizer("mistral"))
    calls = [{"name": n, "arguments": {"a": 1}, "id": f"{n}{'x' * 8}"} for n in ("a", "b")]
    text = f"[TOOL_CALLS] {json.dumps(calls)}</s>"
    message = renderer.parse(renderer.vocabulary.encode(text), TOOLS, renderer.render([ASK], TOOLS))
    assert [call["id"] for call in message["tool_calls"]] == ["axxxxxxxx", "bxxxxxxxx"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["a", "b"]
