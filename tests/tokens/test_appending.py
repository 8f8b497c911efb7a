"""Templates that no renderer reproduces: recorded ids stay, and what follows them is what the template writes."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.family_gateway import TOOLS
from tests.tokens.families import FAMILIES, official, tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from agentrl.tokens.appending import Shape, shape_of
from agentrl.tokens.selection import load_renderer

ASK, ANSWER = {"role": "user", "content": "What is 12 * 34?"}, {"role": "assistant", "content": "It is 408."}
MORE, SYSTEM = {"role": "user", "content": "And halved?"}, {"role": "system", "content": "Be brief."}
NUMBERED = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + ' ' ~ loop.index ~ '\\n' + m.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant ' ~ (messages|length + 1) ~ '\\n' -}}{%- endif -%}"
)
"""Appends only, but what it appends depends on how many messages came before."""
APPENDING = ["qwen2.5", "gemma", "gemma-3", "phi-3.5", "smollm2", "olmo-2", "granite-4", "glm-4.5", "mistral"]
WITH_TOOLS = {"qwen2.5", "granite-4", "glm-4.5", "mistral", "gpt-oss", "qwen3.8"}
THINKING = {"glm-4.5", "qwen3.8"}
"""The one drops thinking when a question follows, the other keeps it for good."""


def called(*names, text=None):
    function = [{"name": name, "arguments": json.dumps({"expression": "12 * 34"})} for name in names]
    calls = [{"id": f"call_{n}", "type": "function", "function": each} for n, each in enumerate(function)]
    return {"role": "assistant", "content": text, "tool_calls": calls}


def result(text, n=0):
    return {"role": "tool", "tool_call_id": f"call_{n}", "name": "calculate", "content": text}


@lru_cache
def family(name):
    if name == "qwen3.8":
        return with_template("qwen3", official("qwen3_8"))
    return with_template("smollm2", NUMBERED) if name == "numbered" else load_renderer(tokenizer(name))


def with_template(name, template):
    tokens = tokenizer(name)
    tokens.chat_template = template
    return load_renderer(tokens)


def written(renderer, history, tools=None):
    """The prompt before the last turn of ``history``, and the turn as the template writes it after that prompt."""
    prompt = renderer.render(history[:-1], tools)
    ids = renderer._template.render(history, tools, prompt=False)
    assert ids[: len(prompt)] == prompt
    ends = (n for n in range(len(prompt), len(ids)) if ids[n] in renderer.stop_ids)
    return prompt, ids[len(prompt) : next(ends, len(ids)) + 1]


def extended(renderer, history, new, tools=None):
    prompt, completion = written(renderer, history, tools)
    return renderer.extend(prompt, completion, new, tools, history=history)


TEXT = st.one_of(
    st.text(max_size=12), st.sampled_from(["  x ", "a\n", "<|im_end|>", "</s>\n", "é 🙂", "<|user|>", "{}"])
)
SAID = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)


@st.composite
def conversations(draw, *, tools, system, thinks):
    """A list of exchanges: a turn of the assistant, and the messages after it."""
    exchanges = []
    for _ in range(draw(st.integers(1, 4))):
        turn, kinds = {"role": "assistant", "content": draw(SAID)}, ["user"]
        if tools and draw(st.booleans()):
            turn, kinds = called(*["calculate"] * draw(st.integers(1, 2))), ["tool"]
        if thinks:
            turn["reasoning_content"] = draw(SAID)
        new = [{"role": "user", "content": draw(TEXT)}]
        if kinds == ["tool"]:
            new = [result(draw(TEXT), n) for n in range(len(turn["tool_calls"]))]
        if system and draw(st.integers(0, 3)) == 0:
            new.insert(0, {"role": "system", "content": draw(TEXT)})
        exchanges.append((turn, new, draw(st.booleans()), draw(st.booleans())))
    return exchanges


def split(vocabulary, ids):
    """Other ids of the same text, as a policy may sample them."""
    found = []
    for token in ids:
        text = vocabulary.decode([token])
        text = "" if token in vocabulary.added_tokens_decoder or "\ufffd" in text else text
        parts = [part for char in text for part in vocabulary.encode(char)]
        found += parts if len(parts) > 1 and vocabulary.decode(parts) == vocabulary.decode([token]) else [token]
    return found


@pytest.mark.parametrize("name", [*APPENDING, "gpt-oss", "numbered", "qwen3.8"])
@settings(max_examples=15)
@given(data=st.data())
def test_what_is_extended_decodes_to_what_the_template_writes(name, data):
    renderer, thinking = family(name), False
    tools = TOOLS if name in WITH_TOOLS and data.draw(st.booleans()) else None
    vocabulary, template = renderer.vocabulary, renderer._template
    messages = [SYSTEM] * (name not in ("gemma", "mistral") and data.draw(st.booleans())) + [ASK]
    recorded = renderer.render(messages, tools)
    asked = len(recorded)
    thinks, system = name in THINKING and data.draw(st.booleans()), name in ("qwen2.5", "smollm2")
    thinks = thinks or name == "qwen3.8"
    for turn, new, resplit, cut in data.draw(conversations(tools=tools, system=system, thinks=thinks)):
        _, completion = written(renderer, [*messages, turn], tools)
        if resplit and FAMILIES.get(name, FAMILIES["smollm2"]).pieces == "bytes":
            completion = split(vocabulary, completion)
        if cut and completion[-1] in renderer.stop_ids:
            completion = completion[:-1]
        messages = [*messages, turn, *new]
        known = len(messages) - len(new)
        thinking = thinking or renderer.thinks(completion, recorded)
        longer = renderer.extend(recorded, completion, new, tools, thinking=thinking, history=messages[:known])
        whole = vocabulary.encode(template.text(messages, tools))
        if isinstance(longer, str):
            question = max(n for n in range(known) if messages[n]["role"] == "user")
            tail = [*messages[: messages[0]["role"] == "system"], *messages[question:known]]
            again = renderer.render_again(recorded[:asked], tail, new, tools, thinking=thinking)
            assert again is None or vocabulary.decode(again) == vocabulary.decode(whole)
            longer = again or whole
            thinking = renderer.thinks(longer)
        else:
            assert longer[: len(recorded) + len(completion)] == [*recorded, *completion]
            assert vocabulary.decode(longer) == vocabulary.decode(whole)
        asked = len(longer) if new[-1]["role"] == "user" else asked if recorded == longer[: len(recorded)] else 0
        recorded = longer


@pytest.mark.parametrize("name", APPENDING)
def test_a_template_that_only_appends_is_extended(name):
    renderer = family(name)
    assert renderer.name == "default"
    assert not isinstance(extended(renderer, [ASK, ANSWER], [MORE]), str)
    assert not isinstance(extended(renderer, [ASK, ANSWER, MORE, ANSWER], [ASK]), str)
    if name in WITH_TOOLS:
        assert not isinstance(extended(renderer, [ASK, called("calculate")], [result("408")], TOOLS), str)


@pytest.mark.parametrize("name", ["qwen2.5", "smollm2", "gemma", "granite-4", "olmo-2"])
def test_a_template_that_only_appends_is_nothing_to_warn_of(name):
    assert family(name).warning is None


def test_what_forks_says_why():
    thought = ANSWER | {"reasoning_content": "Multiply."}
    qwen, mistral, oss = family("qwen2.5"), family("mistral"), family("gpt-oss")
    reasons = [
        qwen.extend([1], [2], [MORE], thinking=True, history=[ASK, thought]),
        extended(oss, [ASK, ANSWER], [MORE]),
        extended(mistral, [ASK, ANSWER], [MORE], TOOLS),
        mistral.extend([1], [2], [MORE], history=[SYSTEM, ASK, ANSWER]),
        mistral.extend([1], [2], [SYSTEM, MORE], history=[ASK, ANSWER]),
        with_template("smollm2", "{%- set messages = messages[-3:] -%}" + FAMILIES["smollm2"].template).extend(
            [1], [2], [MORE], history=[ASK, ANSWER]
        ),
        family("deepseek-r1").extend([1], [2], [MORE], thinking=True, history=[ASK, ANSWER]),
        qwen.extend([1], [2], [MORE]),
    ]
    assert reasons == [
        "thinking dropped by the template",
        "the template ends an answered turn with another token",
        "tools moved by the template",
        "system prompt moved by the template",
        "the template refuses such a continuation",
        "history rewritten by the template",
        "thinking dropped by the template",
        "the messages before are not known",
    ]


HOISTING = (
    "{%- for m in messages if m.role == 'system' -%}{{- m.content + '\\n' -}}{%- endfor -%}"
    "{%- for m in messages if m.role != 'system' -%}{{- '<|im_start|>' + m.role + m.content + '<|im_end|>' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant' -}}{%- endif -%}"
)


def test_a_system_message_that_moves_to_the_front_forks_where_it_is_new():
    renderer = with_template("smollm2", HOISTING)
    reason = renderer.extend([1], [2], [SYSTEM, MORE], history=[ASK, ANSWER])
    assert reason == "new system message moved by the template"
    assert not isinstance(renderer.extend([1], [2], [MORE], history=[SYSTEM, ASK, ANSWER]), str)


def test_a_template_without_tokens_between_turns_is_not_extended():
    plain = HOISTING.replace("<|im_end|>", "\\n").replace("<|im_start|>", "")
    reason = with_template("smollm2", plain).extend([1], [2], [MORE], history=[ASK, ANSWER])
    assert reason == "the template ends a turn with no token"


def test_a_turn_cut_by_length_gets_its_end_as_given():
    renderer = family("smollm2")
    prompt, completion = written(renderer, [ASK, ANSWER])
    whole = renderer.extend(prompt, completion, [MORE], history=[ASK, ANSWER])
    assert renderer.extend(prompt, completion[:-1], [MORE], history=[ASK, ANSWER]) == whole


def test_a_turn_cut_inside_its_thinking_is_not_extended():
    renderer = family("glm-4.5")
    prompt, history = renderer.render([ASK], TOOLS), [ASK, called("calculate")]
    ids = renderer.vocabulary.encode("\n<think>Multiply")
    reason = renderer.extend(prompt, ids, [result("408")], TOOLS, thinking=True, history=history)
    assert reason == "the turn was cut inside its thinking"


def test_thinking_stays_through_a_question_where_the_template_keeps_it_for_good():
    renderer, thought = family("qwen3.8"), ANSWER | {"reasoning_content": "Multiply."}
    prompt, completion = written(renderer, [ASK, thought])
    assert renderer.thinks(completion, prompt)
    longer = renderer.extend(prompt, completion, [MORE], thinking=True, history=[ASK, ANSWER])
    assert renderer.vocabulary.decode(longer) == renderer.vocabulary.decode(renderer.render([ASK, thought, MORE]))


def test_an_end_that_a_template_writes_in_the_middle_only_stays_where_the_policy_samples_it(tmp_path):
    tokens = tokenizer("olmo-3")
    tokens.save_pretrained(tmp_path)
    ends = tokens.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    renderer = load_renderer(tmp_path)
    prompt, said = renderer.render([ASK]), renderer.vocabulary.encode("It is 408.")
    assert renderer.history_length([*said, ends[0]]) == len(said) + 1
    longer = renderer.extend(prompt, [*said, ends[0]], [MORE], history=[ASK, ANSWER])
    assert longer == renderer.render([ASK, ANSWER, MORE])
    other = renderer.extend(prompt, [*said, ends[1]], [MORE], history=[ASK, ANSWER])
    assert other == "the template ends an answered turn with another token"


def test_a_question_that_the_template_does_not_take_for_one_is_looked_at_in_the_whole_conversation():
    template = (
        "{%- set asked = messages | selectattr('role', 'eq', 'user') | rejectattr('content', 'eq', '=> 408') | list -%}"
        "{%- if not asked -%}{{- raise_exception('No question.') -}}{%- endif -%}" + FAMILIES["smollm2"].template
    )
    renderer = with_template("smollm2", template)
    history = [ASK, ANSWER, {"role": "user", "content": "=> 408"}, ANSWER]
    longer = extended(renderer, history, [MORE])
    assert longer == renderer.render([*history, MORE])


def test_arguments_that_are_no_json_do_not_keep_a_conversation_from_going_on():
    renderer = family("granite-4")
    turn = called("calculate")
    turn["tool_calls"][0]["function"]["arguments"] = "{12 * 34"
    prompt = renderer.render([ASK], TOOLS)
    ids = renderer.vocabulary.encode('<tool_call>\n{"name": "calculate", "arguments": {12 * 34}\n</tool_call>')
    longer = renderer.extend(prompt, ids, [result("error")], TOOLS, history=[ASK, turn])
    assert longer[: len(prompt) + len(ids)] == [*prompt, *ids]
    assert renderer.vocabulary.decode(longer).endswith(
        "error\n</tool_response><|end_of_text|>\n" + "<|start_of_role|>assistant<|end_of_role|>"
    )


def metaspace():
    pieces = Tokenizer(models.BPE(byte_fallback=False))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    pieces.decoder = decoders.Metaspace(prepend_scheme="always")
    alphabet = sorted({*map(chr, range(32, 127)), "\n", "▁"})
    texts = ["user assistant system What is 12 * 34? And halved? It is 408."] * 2
    pieces.train_from_iterator(
        texts, trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=200, show_progress=False)
    )
    pieces.add_special_tokens(["<|im_start|>", AddedToken("<|im_end|>", rstrip=True, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, eos_token="<|im_end|>", chat_template=FAMILIES["smollm2"].template
    )


def test_a_vocabulary_that_encodes_a_lone_text_otherwise_is_extended_as_it_encodes_the_whole():
    renderer = load_renderer(metaspace())
    longer = extended(renderer, [ASK, ANSWER], [MORE])
    whole = renderer.render([ASK, ANSWER, MORE])
    assert longer == whole
    end = len(written(renderer, [ASK, ANSWER])[0]) + len(written(renderer, [ASK, ANSWER])[1])
    lone = renderer._template.text([ASK, ANSWER, MORE]).partition("It is 408.<|im_end|>")[2]
    assert renderer.vocabulary.encode(lone) != whole[end:]


class Counted:
    """A template that counts the messages that it renders."""

    def __init__(self, template):
        self.template, self.messages = template, 0

    def __getattr__(self, name):
        return getattr(self.template, name)

    def text(self, messages, tools=None, **how):
        self.messages += len(messages)
        return self.template.text(messages, tools, **how)


@pytest.mark.parametrize(("name", "same"), [("smollm2", True), ("numbered", False)])
def test_a_late_turn_renders_no_more_messages_than_an_early_one_where_the_tail_decides(name, same):
    renderer = family(name)
    rendered = []
    for turns in (5, 200):
        history = [ASK, ANSWER] * turns
        counted = Counted(renderer._template)
        renderer._appending._template = counted
        assert isinstance(renderer._appending.ids(history, [MORE], None, thinking=False), list)
        counted.messages = 0
        renderer._appending.ids(history, [MORE], None, thinking=False)
        rendered.append(counted.messages)
        renderer._appending._template = counted.template
    assert (rendered[0] == rendered[1]) == same


def test_the_kind_of_a_continuation_is_told_from_its_messages():
    history = [{"role": "developer", "content": "x"}, ASK, called("a", "b", "c"), result("1"), called("a", text="Hm.")]
    new = [result("1"), result("2"), MORE]
    roles = ("tool", "user")
    assert shape_of(history, new, TOOLS, thinking=True) == Shape(roles, True, True, True, True, True, 1)
    assert shape_of(history[:3], new[:1], None, thinking=False) == Shape(("tool",), system=True, text=False, calls=2)
