"""Renderers chosen by what a template writes, and chains extended token for token."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.errors import ConfigError, GatewayError
from agentrl.tokens.selection import load_renderer

TOOLS = [{"type": "function", "function": {"name": "calculate", "description": "é", "parameters": {"type": "object"}}}]
ASK = {"role": "user", "content": "What is 12 * 34?"}
PLAIN = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[bot] {% endif %}"
)


@pytest.fixture(scope="module")
def renderer(chat_tokenizer):
    return load_renderer(chat_tokenizer)


def by_template(tokenizer, messages, tools=None, *, prompt=True):
    return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, return_dict=False)


def call(arguments, name="calculate"):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


def parsed_arguments(messages):
    """The messages as Hugging Face templates take them, arguments as objects."""
    copy = json.loads(json.dumps(messages))
    for message in copy:
        for each in message.get("tool_calls", ()):
            each["function"]["arguments"] = json.loads(each["function"]["arguments"])
    return copy


def test_auto_knows_a_model_by_its_template_and_not_by_its_name(chat_tokenizer, renderer):
    assert chat_tokenizer.name_or_path == ""
    assert renderer.name == "qwen3"
    assert renderer.warning is None
    assert renderer.stop_ids == frozenset(chat_tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))


TEXT = st.text(max_size=40)
TURN = st.one_of(
    st.builds(lambda text: [{"role": "user", "content": text}], TEXT),
    st.builds(lambda a, b: [{"role": "user", "content": a}, {"role": "assistant", "content": b}], TEXT, TEXT),
    st.builds(
        lambda ask, key, value, result: [
            {"role": "user", "content": ask},
            call({key: value}),
            {"role": "tool", "tool_call_id": "1", "content": result},
        ],
        TEXT,
        TEXT,
        st.one_of(st.none(), st.booleans(), st.integers(), TEXT),
        TEXT,
    ),
)


@settings(max_examples=60)
@given(st.lists(TURN, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_what_is_rendered_is_what_the_template_writes(chat_tokenizer, renderer, turns, system, tools):
    messages = [{"role": "system", "content": "Bref.\n"}] * system + [message for turn in turns for message in turn]
    offered = TOOLS if tools else None
    assert renderer.render(messages, offered) == by_template(chat_tokenizer, parsed_arguments(messages), offered)


def test_thinking_in_the_history_is_rendered_as_the_template_does(chat_tokenizer, renderer):
    thought = {"role": "assistant", "content": "It is 408.", "reasoning_content": "Multiply."}
    messages = [ASK, thought, {"role": "user", "content": "and?"}, call({}) | {"reasoning_content": "Again."}]
    messages.append({"role": "tool", "tool_call_id": "1", "content": "1"})
    ids = renderer.render(messages, TOOLS)
    assert ids == by_template(chat_tokenizer, parsed_arguments(messages), TOOLS)
    assert "Again." in chat_tokenizer.decode(ids)
    assert "Multiply." not in chat_tokenizer.decode(ids)


def test_text_parts_and_developer_messages_mean_text_and_system(renderer):
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "12 * 34?"}]}]
    assert renderer.render(parts) == renderer.render([ASK])
    system, developer = {"role": "system", "content": "x"}, {"role": "developer", "content": "x"}
    assert renderer.render([developer, ASK]) == renderer.render([system, ASK])


def split(tokenizer, text):
    """Ids of a text that encoding it would not give: one token a character."""
    ids = [token for char in text for token in tokenizer.encode(char)]
    assert ids != tokenizer.encode(text)
    return ids


@pytest.mark.parametrize("new", [[{"role": "user", "content": "and?"}], [{"role": "tool", "content": "408"}]])
def test_a_chain_is_extended_on_its_own_ids(chat_tokenizer, renderer, new):
    prompt = renderer.render([ASK], TOOLS)
    completion = [*split(chat_tokenizer, "It is 408."), *chat_tokenizer.encode("<|im_end|>")]
    extended = renderer.extend(prompt, completion, new, TOOLS)
    assert extended[: len(prompt) + len(completion)] == prompt + completion
    whole = [ASK, {"role": "assistant", "content": "It is 408."}, *new]
    text = chat_tokenizer.apply_chat_template(whole, tools=TOOLS, add_generation_prompt=True, tokenize=False)
    assert chat_tokenizer.decode(extended) == text


def test_a_turn_cut_by_its_token_limit_is_closed_and_extended(chat_tokenizer, renderer):
    prompt, completion = renderer.render([ASK]), chat_tokenizer.encode("It is")
    extended = renderer.extend(prompt, completion, [{"role": "user", "content": "Go on."}])
    assert chat_tokenizer.decode(extended[len(prompt) :]).startswith("It is<|im_end|>\n<|im_start|>user\nGo on.")


def test_thinking_lasts_through_tool_results_and_is_dropped_by_a_new_question(chat_tokenizer, renderer):
    prompt = renderer.render([ASK], TOOLS)
    completion = chat_tokenizer.encode("<think>\nHm.\n</think>\n\nLet me see.<|im_end|>")
    assert renderer.thinks(completion)
    tool = [{"role": "tool", "content": "408"}]
    assert renderer.extend(prompt, completion, tool, TOOLS, thinking=True)[: len(prompt)] == prompt
    user = [*tool, {"role": "user", "content": "and?"}]
    history = [ASK, {"role": "assistant", "content": "Let me see.", "reasoning_content": "Hm."}]
    reason = renderer.extend(prompt, completion, user, TOOLS, thinking=True, history=history)
    assert reason == "thinking dropped by the template"


def test_an_answer_that_was_not_sampled_is_no_extension(renderer):
    new = [{"role": "assistant", "content": "408"}, {"role": "user", "content": "and?"}]
    assert renderer.extend(renderer.render([ASK]), [1], new) == "history edited"


@pytest.fixture(scope="module")
def unknown(make_tokenizer):
    """The renderer of a template that nobody knows."""
    with pytest.MonkeyPatch.context() as patch:
        warnings = []
        patch.setattr(logging.getLogger("agentrl.tokens.selection"), "warning", lambda *args: warnings.append(args))
        renderer = load_renderer(make_tokenizer(PLAIN))
    assert len(warnings) == 1
    return renderer


def test_a_template_that_no_renderer_reproduces_says_what_it_costs_where_it_cannot_be_extended(unknown):
    assert unknown.name == "default"
    assert "encoded again" in unknown.warning
    assert "whole history" in unknown.warning
    messages = [ASK, {"role": "assistant", "content": "408"}, {"role": "user", "content": "é?"}]
    text = "[user] What is 12 * 34?\n[assistant] 408\n[user] é?\n[bot] "
    assert unknown.vocabulary.decode(unknown.render(messages)) == text
    reason = "history rewritten by the template"
    assert reason in unknown.warning
    assert unknown.extend([1], [2], [ASK], history=messages[:2]) == reason


def test_a_template_in_full_ends_turns_as_it_writes_them(make_tokenizer):
    tokenizer = make_tokenizer(PLAIN.replace("\n", "<|endoftext|>").replace("[bot]", "[assistant]"))
    assert load_renderer(tokenizer).stop_ids == {tokenizer.eos_token_id, tokenizer.pad_token_id}


def test_a_template_in_full_still_reads_tool_calls(unknown):
    ids = unknown.vocabulary.encode('<tool_call>\n{"name": "calculate", "arguments": {"a": 1}}\n</tool_call><|im_end|>')
    assert unknown.parse(ids, TOOLS)["tool_calls"][0]["function"] == {"name": "calculate", "arguments": '{"a": 1}'}


def test_a_template_that_does_not_know_thinking_is_extended_where_there_is_none(make_tokenizer, chat_tokenizer):
    template = chat_tokenizer.chat_template.replace("m.reasoning_content or ''", "''")
    template = template.replace("and (loop.last or part.thought)", "and part.thought")
    renderer = load_renderer(make_tokenizer(template))
    assert renderer.name == "qwen3"
    new = [{"role": "user", "content": "and?"}]
    assert not isinstance(renderer.extend(renderer.render([ASK]), [5], new), str)
    reason = renderer.extend(renderer.render([ASK]), [5], new, thinking=True, history=[ASK, {"role": "assistant"}])
    assert reason == "thinking dropped by the template"
    thought = {"role": "assistant", "content": "408", "reasoning_content": "Hm."}
    assert "Hm." not in renderer.vocabulary.decode(renderer.render([ASK, thought, *new]))


GLM = """[gMASK]<sop><|system|>Reasoning Effort: Max
{%- if tools -%}{{- raise_exception('no tools') -}}{%- endif -%}
{%- for m in messages -%}
  {%- if m.role in ('user', 'system') -%}{{- '<|' + m.role + '|>' + m.content -}}
  {%- elif m.role == 'assistant' -%}
    {{- '<|assistant|><think>' + (m.reasoning_content or '') + '</think>' + m.content.strip() -}}
  {%- else -%}{{- raise_exception('no tools') -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|><think>' -}}{%- endif -%}"""
GLM_MARKS = [
    *[
        "[gMASK]",
        "[sMASK]",
        "<sop>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
        "<think>",
        "</think>",
    ],
    *["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<arg_key>", "</arg_key>", "<arg_value>"],
    *["</arg_value>", "<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "/nothink"],
]


def test_another_family_is_known_likewise_and_extended_as_its_template_goes_on(make_tokenizer):
    """One that opens thinking in the prompt, keeps it for good, and ends a turn with the next one's header."""
    tokenizer = make_tokenizer(GLM, marks=GLM_MARKS)
    renderer = load_renderer(tokenizer)
    assert renderer.name == "glm-5.3"
    prompt = renderer.render([ASK])
    completion = tokenizer.encode("Multiply.</think>It is 408.<|user|>")
    message = renderer.parse(completion, None, prompt)
    assert message == {"role": "assistant", "content": "It is 408.", "reasoning_content": "Multiply."}
    extended = renderer.extend(prompt, completion, [ASK], thinking=True)
    assert extended == by_template(tokenizer, [ASK, message, ASK])


def test_a_message_that_the_template_refuses_is_the_callers_mistake(make_tokenizer):
    strict = load_renderer(
        make_tokenizer(PLAIN.replace("[{{", "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}[{{"))
    )
    with pytest.raises(GatewayError, match="refuses these messages: no tools") as refused:
        strict.render([ASK, {"role": "tool", "content": "1"}])
    assert refused.value.status == 400


def test_an_unknown_renderer_is_an_error_with_near_matches(chat_tokenizer):
    with pytest.raises(ConfigError, match=r"no renderer 'qwen33' \(did you mean 'qwen3'"):
        load_renderer(chat_tokenizer, "qwen33")


def test_a_renderer_of_another_family_is_an_error_that_says_why(chat_tokenizer):
    with pytest.raises(ConfigError, match=r"'llama-3' does not work .*begin_of_text.*\(use 'auto'\)"):
        load_renderer(chat_tokenizer, "llama-3")


def test_a_renderer_named_against_the_template_is_used_with_a_warning(make_tokenizer, caplog):
    renderer = load_renderer(make_tokenizer(PLAIN), "qwen3")
    assert "does not reproduce the chat template" in renderer.warning
    assert renderer.warning in caplog.text
    assert renderer.vocabulary.decode(renderer.render([ASK])).startswith("<|im_start|>user")


def test_a_renderer_named_against_the_template_reads_the_calls_that_it_writes_itself(make_tokenizer):
    assert load_renderer(make_tokenizer(PLAIN), "qwen3").abilities.tools
    assert load_renderer(make_tokenizer(None), "qwen3").abilities.tools


def test_a_tokenizer_without_chat_template_is_an_error_with_its_fix(make_tokenizer, tmp_path):
    make_tokenizer(None).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no chat template \(.*chat_template.jinja"):
        load_renderer(tmp_path)


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no tokenizer that loads"):
        load_renderer(tmp_path)


def test_a_folder_is_as_good_as_its_tokenizer(chat_tokenizer, tmp_path, renderer):
    chat_tokenizer.save_pretrained(tmp_path)
    assert load_renderer(str(tmp_path)).render([ASK]) == renderer.render([ASK])
