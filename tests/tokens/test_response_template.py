"""Calls in a form of the model's own, read by the response template that its tokenizer brings."""

from __future__ import annotations

import pytest
from tests.gateway.family_gateway import ASK, TOOLS
from tests.tokens.families import FAMILIES, tokenizer

from agentrl.tokens.selection import load_renderer

CHAT = FAMILIES["granite-4"].template
OWN = CHAT.replace(
    '\'<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \'', "'@' + call.function.name + ' '"
).replace("'}\\n</tool_call>'", "'@'")
"""Writes a call as ``@name {…}@``, which no parser knows."""
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|start_of_role|>assistant<|end_of_role|>",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\n?@(?P<name>\w+) ",
            "close": "@",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close": "<|end_of_text|>", "content": "text"},
    },
}


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    tokens, folder = tokenizer("granite-4"), tmp_path_factory.mktemp("model")
    tokens.chat_template, tokens.response_template = OWN, RESPONSE
    tokens.save_pretrained(folder)
    return load_renderer(folder)


def read(renderer, text, tools=TOOLS):
    message = renderer.parse(renderer.vocabulary.encode(text + "<|end_of_text|>"), tools, renderer.render([ASK], tools))
    calls = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", [])]
    return message["content"], calls


def test_without_it_the_models_calls_could_not_be_read(renderer):
    tokens = tokenizer("granite-4")
    tokens.chat_template = OWN
    assert not load_renderer(tokens).abilities.reads
    assert renderer.abilities.tools


def test_calls_are_read_and_keep_the_policys_spelling(renderer):
    assert read(renderer, 'Let me see.\n@calculate {"a":  1}@\n@now {}@') == (
        "Let me see.",
        [("calculate", '{"a":  1}'), ("now", "{}")],
    )


@pytest.mark.parametrize("text", ["It is 408.", "@calculate {12 * 34}@", "@"])
def test_what_holds_no_call_that_can_be_read_stays_text(renderer, text):
    assert read(renderer, text) == (text, [])


def test_without_tools_a_call_is_text(renderer):
    assert read(renderer, '@calculate {"a": 1}@', None) == ('@calculate {"a": 1}@', [])


def test_a_response_template_that_does_not_fit_leaves_calls_to_the_known_parser():
    tokens = tokenizer("granite-4")
    tokens.response_template = RESPONSE
    renderer = load_renderer(tokens)
    text = '<tool_call>\n{"name": "calculate", "arguments": {"a": 1}}\n</tool_call>'
    assert read(renderer, text) == (None, [("calculate", '{"a": 1}')])


def test_a_call_that_does_not_fit_is_read_by_the_known_parser():
    fields = RESPONSE["fields"] | {
        "tool_calls": {
            "open_pattern": r"\n?<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        }
    }
    tokens = tokenizer("granite-4")
    tokens.response_template = RESPONSE | {"fields": fields}
    renderer = load_renderer(tokens)
    assert type(renderer._candidate.reader).__name__ == "ResponseTemplate"
    text = '<tool_call>\n{"name": "calculate", "arguments": {12 * 34}}\n</tool_call>'
    assert read(renderer, text) == (None, [("calculate", "{12 * 34}")])
