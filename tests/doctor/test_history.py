"""Conversations that grow: templates that keep what they wrote, and templates that do not."""

from __future__ import annotations

import json
import shutil

import pytest

from agentrl.doctor.model import walk
from agentrl.tokens.selection import load_renderer
from agentrl.tokens.template import ChatTemplate

TURNS = 4


def turns(tokenizer, *, thinking=False):
    renderer = load_renderer(tokenizer)
    template = ChatTemplate(renderer.vocabulary, "it")
    return walk(renderer, template, thinking=thinking)


def test_a_template_that_only_appends_keeps_every_id(chat_tokenizer):
    found = turns(chat_tokenizer)
    assert [(turn.fork, turn.rewritten) for turn in found] == [(None, None)] * TURNS
    assert [turn.tokens for turn in found] == sorted({turn.tokens for turn in found})


def test_thinking_that_the_template_drops_is_a_fork_where_the_user_speaks(chat_tokenizer):
    found = turns(chat_tokenizer, thinking=True)
    assert [turn.fork is None for turn in found] == [True, False, True, False]
    was, became = found[1].rewritten
    assert was.startswith("<think>")
    assert not became.startswith("<think>")


@pytest.fixture
def model_with(tmp_path, tiny_folder):
    """A copy of the bundled model with another chat template."""

    def make(change):
        folder = tmp_path / "model"
        shutil.copytree(tiny_folder, folder)
        template = folder / "chat_template.jinja"
        changed = change(template.read_text())
        assert changed != template.read_text()
        template.write_text(changed)
        assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
        return folder

    return make


def forgets_older_tool_results(template):
    return "{%- set messages = messages[-4:] -%}\n" + template


def counts_the_messages(template):
    return "{{- '[' ~ messages|length ~ ' messages]\\n' -}}\n" + template


def writes_its_own_turns(template):
    """Append-only, and like no family of models."""
    return (
        "{%- for m in messages -%}{{- '<|im_start|>' + m.role + ': ' + (m.content or '') -}}"
        "{%- for call in m.tool_calls or [] -%}{{- '@' ~ call.function.arguments|tojson -}}{%- endfor -%}"
        "{{- '<|im_end|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant: ' -}}{%- endif -%}"
    )


@pytest.mark.parametrize("change", [forgets_older_tool_results, counts_the_messages])
def test_a_template_that_rewrites_history_is_a_warning_with_the_place(examined, model_with, change):
    result = examined("math", f"model={model_with(change)}")
    (warning,) = result.found("model")
    assert warning.text.startswith("the chat template rewrites history: in turn ")
    assert warning.figures["extended"] < warning.figures["turns"] == TURNS
    assert "model.renderer" in warning.fix
    if change is counts_the_messages:
        assert "in turn 1 of 4 '2 messages]" in warning.text
        assert "became '4 messages]" in warning.text
    assert result.diagnosis.ready


def ends_no_turn(template):
    return writes_its_own_turns(template).replace("<|im_start|>", "").replace("<|im_end|>", "\n")


def test_a_template_of_no_known_family_that_only_appends_is_nothing_to_warn_of(examined, model_with):
    result = examined("math", f"model={model_with(writes_its_own_turns)}")
    assert result.found("model") == []
    texts = [finding.text for name, finding in result.told.found_in if name == "model"]
    assert any(text.startswith("prefixes are kept: 4 of 4 turns with tools extend") for text in texts)


def test_a_template_that_cannot_be_extended_is_told_what_it_costs(examined, model_with):
    (warning,) = examined("math", f"model={model_with(ends_no_turn)}").found("model")
    reason = "the template ends a turn with no token"
    assert f"4 of 4 turns with tools are rendered in full ({reason})" in warning.text
    assert warning.figures["forks"] == {reason: 4}


def test_a_model_without_a_template_cannot_be_trained(examined, model_with):
    folder = model_with(lambda template: "")
    result = examined("math", f"model={folder}")
    problem = result.only("problem", "model")
    assert "has no chat template" in problem.text
    assert result.levels()["config"] == {"skipped"}


def refuses_tools(template):
    return "{%- if tools -%}{{- raise_exception('no tools here') -}}{%- endif -%}\n" + template


def refuses_everything(template):
    return "{{- raise_exception('out of order') -}}\n" + template


def test_a_template_without_tools_is_tried_without_them(examined, model_with):
    result = examined("math", f"model={model_with(refuses_tools)}")
    assert result.found("model") == []
    texts = [finding.text for name, finding in result.told.found_in if name == "model"]
    assert any("conversations with tools cannot be rendered" in text and "no tools here" in text for text in texts)
    assert any(text.startswith("prefixes are kept: 2 of 2 turns extend") for text in texts)


def test_a_template_that_renders_nothing_is_a_problem(examined, model_with):
    problem = examined("math", f"model={model_with(refuses_everything)}").only("problem", "model")
    assert "out of order" in problem.text


def test_a_renderer_of_another_family_is_told(examined, model_with):
    folder = model_with(counts_the_messages)
    (warning,) = examined("math", f"model.name={folder}", "model.renderer=qwen3").found("model")
    assert "'qwen3' does not reproduce the chat template" in warning.text
    assert warning.fix == "set model.renderer=auto"
