"""Thinking that a prompt opens: what the policy thinks is kept apart from what it says, for every real template."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokens.families import tokenizer

from agentrl.tokens.selection import load_renderer

ASK = {"role": "user", "content": "What is 12 * 34?"}
TOOLS = [{"type": "function", "function": {"name": "calculate", "parameters": {"type": "object"}}}]
OFFICIAL = ["qwen3_5_think", "qwen3_6", "nemotron_3_nano", "nemotron_3_super"]
"""Templates of the installed trl package in the form of Qwen's conversations."""
OTHERS = {
    "[THINK]": "[/THINK]",
    "<thought>": "</thought>",
    "<seed:think>": "</seed:think>",
    "◁think▷": "◁/think▷",
    "<|START_THINKING|>": "<|END_THINKING|>",
}
PLAIN = "{%% for m in messages %%}[{{ m.role }}] {{ m.content }}\n{%% endfor %%}[assistant] %s\n"
CASES = ["deepseek-v3", "deepseek-r1", *OFFICIAL, *OTHERS]


@pytest.fixture(scope="module")
def load(make_tokenizer):
    @lru_cache
    def load(name):
        if name in OTHERS:
            return load_renderer(make_tokenizer(PLAIN % name))
        if name not in OFFICIAL:
            return load_renderer(tokenizer(name))
        found = importlib.util.find_spec("trl")
        template = Path(found.origin).parent / "chat_templates" / f"{name}.jinja"
        return load_renderer(make_tokenizer(template.read_text()))

    return load


@pytest.fixture
def read(load):
    """What a completion of a family says, without the end of its turn."""

    def read(name, text, tools=None):
        renderer = load(name)
        text = text.replace("</think>", OTHERS.get(name, "</think>"))
        ids = [*renderer.vocabulary.encode(text), renderer.vocabulary.eos_token_id]
        return renderer.parse(ids, tools, renderer.render([ASK], tools))

    return read


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("text", ["Multiply.\n</think>\n\nIt is 408.", " Multiply.</think>It is 408."])
def test_thinking_that_the_prompt_opened_is_apart_from_the_content(read, name, text):
    message = read(name, text)
    assert message == {"role": "assistant", "content": "It is 408.", "reasoning_content": "Multiply."}


@pytest.mark.parametrize("name", CASES)
def test_thinking_that_never_closes_says_nothing(read, name):
    assert read(name, "Multiply.") == {"role": "assistant", "content": "", "reasoning_content": "Multiply."}


@pytest.mark.parametrize("name", CASES)
def test_thinking_of_nothing_is_none(read, name):
    assert read(name, "\n\n</think>\n\nIt is 408.") == {"role": "assistant", "content": "It is 408."}


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_that_opens_thinking_makes_a_turn_that_thinks(load, name):
    renderer = load(name)
    prompt, cut = renderer.render([ASK]), renderer.vocabulary.encode("Multiply.")
    assert renderer.thinks(cut, prompt)
    assert not renderer.thinks(cut)


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_in_which_somebody_else_wrote_a_mark_opens_none(load, name):
    renderer = load(name)
    asked = renderer.vocabulary.encode("<think>")
    assert not renderer.thinks(renderer.vocabulary.encode("408"), [*asked, *renderer.vocabulary.encode("What? ")])


def test_a_call_after_the_thinking_is_a_call(make_tokenizer):
    renderer = load_renderer(make_tokenizer(PLAIN % "<think>"))
    call = '<tool_call>\n{"name": "calculate", "arguments": {"a":  1}}\n</tool_call>'
    ids = renderer.vocabulary.encode(f"Not {call} yet.</think>\n\nNow:\n{call}<|im_end|>")
    message = renderer.parse(ids, TOOLS, renderer.render([ASK]))
    assert message["reasoning_content"] == f"Not {call} yet."
    assert message["content"].strip() == "Now:"
    assert [each["function"]["arguments"] for each in message["tool_calls"]] == ['{"a":  1}']


@settings(max_examples=60)
@given(thought=st.text(max_size=20), answer=st.text(max_size=20), ids=st.lists(st.integers(0, 399), max_size=8))
def test_whatever_is_thought_and_said_is_told_apart(load, thought, answer, ids):
    for mark in ("[THINK]", "<thought>"):
        renderer = load(mark)
        text = f"{thought}{OTHERS[mark]}{answer}"
        message = renderer.parse(renderer.vocabulary.encode(text), None, renderer.render([ASK]))
        assert message.get("reasoning_content", "") == thought.strip()
        assert message["content"] == answer.lstrip()
        renderer.parse([*renderer.vocabulary.encode(text), *ids], TOOLS, renderer.render([ASK]))
