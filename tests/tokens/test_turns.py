"""Conversations that somebody else has written, as the ids that the policy would have sampled."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tests.tokens.families import FAMILIES, tokenizer

from agentrl.errors import GatewayError
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer
from agentrl.tokens.template import Message
from agentrl.tokens.turns import spoken_turns

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "Calculates.",
            "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
        },
    }
]


def call(expression: str, number: int, text: str | None = None, thought: str = "") -> Message:
    function = {"name": "calculate", "arguments": json.dumps({"expression": expression})}
    message: Message = {
        "role": "assistant",
        "content": text,
        "tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}],
    }
    return message | ({"reasoning_content": thought} if thought else {})


def said(text: str, thought: str = "") -> Message:
    return {"role": "assistant", "content": text} | ({"reasoning_content": thought} if thought else {})


def ask(text: str) -> Message:
    return {"role": "user", "content": text}


def result(text: str, number: int) -> Message:
    return {"role": "tool", "tool_call_id": f"call_{number}", "name": "calculate", "content": text}


WORDS = st.text(alphabet='abc é🙂12<>|{}"\n', min_size=1, max_size=24).map(str.strip).filter(bool)


@st.composite
def conversations(draw: st.DrawFn, *, tools: bool, thinks: bool) -> list[Message]:
    """Several questions, each answered at once or after calls of a tool, with or without thinking."""
    messages: list[Message] = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(ask(draw(WORDS)))
        for number in range(draw(st.integers(0, 2)) if tools else 0):
            thought = draw(WORDS) if thinks and draw(st.booleans()) else ""
            messages += [call(f"x {draw(WORDS)}", number, None, thought), result(draw(WORDS), number)]
        messages.append(said(draw(WORDS), draw(WORDS) if thinks and draw(st.booleans()) else ""))
    return messages


OFTEN = ("qwen3", "llama-3.1", "mistral", "phi-3.5", "gpt-oss", "glm-4.5")
EVERY = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES]
EMPTY = re.compile(r"<think>\s*</think>\s*")
"""Thinking without words: a policy that has said it keeps it in the ids, and templates drop it from history."""


@cache
def renderer_of(name: str) -> Renderer:
    return load_renderer(tokenizer(name))


def check(renderer: Renderer, messages: list[Message], tools: list[Message] | None) -> None:
    """The turns are those of the messages, each of them can be sampled, is read back, and follows its prompt."""
    try:
        turns = spoken_turns(renderer, messages, tools)
    except GatewayError as error:
        raise error.__cause__ if isinstance(error.__cause__, TemplateError) else error from None
    assert [turn.message for turn in turns] == [n for n, each in enumerate(messages) if each["role"] == "assistant"]
    for turn in turns:
        assert turn.completion_ids[-1] in renderer.stop_ids
        assert not renderer.stop_ids.intersection(turn.completion_ids[:-1])
        wanted, decode = messages[turn.message], renderer.vocabulary.decode
        rendered = renderer.render(messages[: turn.message], tools)
        assert EMPTY.sub("", decode(turn.prompt_ids)) == EMPTY.sub("", decode(rendered))
        parsed = renderer.parse(turn.completion_ids, tools, turn.prompt_ids)
        assert (parsed["content"] or "").strip() == (wanted["content"] or "").strip()
        assert parsed.get("reasoning_content", "") == wanted.get("reasoning_content", "")
        assert meanings(parsed) == meanings(wanted)


def meanings(message: Message) -> list[tuple[str, Any]]:
    functions = [each["function"] for each in message.get("tool_calls") or ()]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=6)
@given(data=st.data())
def test_each_turn_is_what_the_policy_would_have_sampled_after_the_prompt_that_it_would_have_had(
    name: str, data: st.DataObject
) -> None:
    renderer = renderer_of(name)
    tools = TOOLS if renderer.abilities.complete else None
    messages = data.draw(conversations(tools=tools is not None, thinks=False))
    with suppress(TemplateError):  # Some templates take no system message.
        check(renderer, messages, tools)


@pytest.mark.parametrize("name", ["qwen3", "gpt-oss", "deepseek-r1"])
@settings(max_examples=6)
@given(data=st.data())
def test_thinking_is_spoken_in_every_turn_though_templates_drop_it_from_history(name: str, data: st.DataObject) -> None:
    renderer = renderer_of(name)
    tools = TOOLS if renderer.abilities.complete else None
    check(renderer, data.draw(conversations(tools=tools is not None, thinks=True)), tools)


def test_a_prompt_goes_on_from_the_turn_before_it_and_forks_where_the_template_drops_thinking() -> None:
    renderer = renderer_of("qwen3")
    plain = [ask("1 + 1?"), said("2"), ask("And 2 + 2?"), said("4")]
    calls = [ask("1 + 1?"), call("1 + 1", 0, thought="Calculate."), result("2", 0), said("2", "So.")]
    for messages in ([*calls], [*calls, *plain]):
        turns = spoken_turns(renderer, messages, TOOLS)
        so_far = [*turns[0].prompt_ids, *turns[0].completion_ids]
        assert list(turns[1].prompt_ids[: len(so_far)]) == so_far
    decode = renderer.vocabulary.decode
    assert "So." in decode(turns[1].completion_ids)
    assert "So." not in decode(turns[2].prompt_ids)


def test_what_would_end_a_turn_is_plain_text_where_the_turn_spells_it_out() -> None:
    renderer = renderer_of("qwen3")
    (turn,) = spoken_turns(renderer, [ask("Which token ends a turn?"), said("It is <|im_end|> here.")])
    assert renderer.vocabulary.decode(turn.completion_ids).endswith("It is <|im_end|> here.<|im_end|>")
    assert sum(token in renderer.stop_ids for token in turn.completion_ids) == 1


@pytest.mark.parametrize(
    ("name", "messages", "problem"),
    [
        ("llama-3", [ask("Hi"), said("Hello", "Be kind.")], "leaves out the reasoning of a turn, 'Be kind.'"),
        ("smollm2", [ask("Hi"), call("1 + 1", 0)], "tool"),
    ],
)
def test_what_a_template_does_not_write_is_refused(name: str, messages: list[Message], problem: str) -> None:
    with pytest.raises(GatewayError, match=re.escape(problem)):
        spoken_turns(renderer_of(name), messages, TOOLS if "tool_calls" in messages[-1] else None)


def test_a_template_that_ends_no_turn_has_the_usual_end_added(make_tokenizer) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    renderer = load_renderer(make_tokenizer(template))
    first, second = spoken_turns(renderer, [ask("1?"), said("2"), ask("3?"), said("4")])
    decode = renderer.vocabulary.decode
    assert decode(first.completion_ids) == "2<|im_end|>"
    assert decode(second.prompt_ids) == "[user] 1?\n[assistant] 2\n[user] 3?\n[assistant] "
    assert decode(second.completion_ids) == "4<|im_end|>"
