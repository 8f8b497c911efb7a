"""Templates rendered as Hugging Face renders them, on one day, with messages in the form that each takes."""

from __future__ import annotations

from datetime import date

import pytest
from tests.gateway.family_gateway import ASK, TOOLS
from tests.tokens.families import FAMILIES, official, tokenizer

from agentrl.errors import ConfigError
from agentrl.tokens.selection import load_renderer
from agentrl.tokens.template import ChatTemplate, Form
from agentrl.tokens.vocabulary import Vocabulary

TALK = [ASK, {"role": "assistant", "content": "It is 408."}, {"role": "user", "content": "Ünïcödé <b> & 'x'?"}]
UNDATED = [name for name in FAMILIES if name not in ("llama-3.2", "granite-3", "gpt-oss")]
DAY = date(2026, 3, 14)


def template(name, day=DAY):
    return ChatTemplate(Vocabulary(tokenizer(name)), name, day)


@pytest.mark.parametrize("name", UNDATED)
def test_what_is_rendered_is_what_hugging_face_renders(name):
    theirs = tokenizer(name).apply_chat_template(TALK, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    assert template(name).text(TALK, TOOLS) == theirs


@pytest.mark.parametrize(("name", "written"), [("llama-3.2", "14 Mar 2026"), ("granite-3", "March 14, 2026")])
def test_every_prompt_of_a_run_is_written_on_the_same_day(name, written):
    renderer = load_renderer(tokenizer(name), day=DAY)
    assert renderer.day == DAY
    for messages in ([ASK], TALK):
        assert written in renderer.vocabulary.decode(renderer.render(messages))


def test_a_renderer_that_writes_a_date_is_held_against_the_template_on_the_same_day():
    for name, day in [("llama-3.1", None), ("llama-3.2", DAY), ("llama-3.2", None)]:
        renderer = load_renderer(tokenizer(name), day=day)
        assert (renderer.name, renderer.warning) == ("llama-3", None)
        assert load_renderer(tokenizer(name), "llama-3", day=day).render(TALK, TOOLS) == renderer.render(TALK, TOOLS)
    assert load_renderer(tokenizer("llama-3.1")).day is None


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("qwen3", Form()),
        ("mistral", Form(short_ids=True)),
        ("deepseek-v3", Form(arguments="text")),
        ("deepseek-r1", Form(arguments="text", empty_content=None)),
        ("gpt-oss", Form(thinking="thinking")),
    ],
)
def test_the_form_of_messages_is_told_by_what_reaches_the_prompt(name, form):
    assert template(name).form == form


@pytest.mark.parametrize("name", ["smolvlm", "idefics3", "llava_next", "qwen2_5_vl"])
def test_what_is_said_reaches_a_template_that_writes_parts_alone(name):
    tokens = tokenizer("smollm2")
    tokens.chat_template = official(name)
    renderer = load_renderer(tokens, day=DAY)
    said = [{"role": "system", "content": "Be brief."}, *TALK]
    prompt = renderer.vocabulary.decode(renderer.render(said))
    assert all(message["content"] in prompt for message in said)


def test_ids_that_are_short_already_stay_and_others_are_told_apart():
    calls = [{"id": id, "function": {"name": "f", "arguments": "{}"}} for id in ("aB3dE6gH9", "call_1", "call_2")]
    put = Form(short_ids=True).put({"role": "assistant", "tool_calls": calls})
    ids = [call["id"] for call in put["tool_calls"]]
    assert ids[0] == "aB3dE6gH9"
    assert len(set(ids)) == 3
    assert all(len(id) == 9 and id.isalnum() for id in ids)


def test_thinking_reaches_a_template_that_has_another_name_for_it():
    turn = {"role": "assistant", "content": "408", "reasoning_content": "Multiply first."}
    assert "analysis<|message|>Multiply first." in template("gpt-oss").text([ASK, turn], prompt=False)


def test_a_template_that_cannot_be_read_is_an_error_that_names_its_line():
    tokens = tokenizer("qwen3")
    tokens.chat_template = "{% for m in messages %}\n{{ m.content }\n{% endfor %}"
    with pytest.raises(ConfigError, match=r"cannot be read: line 2: .*model\.chat_template"):
        load_renderer(tokens)
