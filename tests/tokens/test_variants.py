"""Variables of a chat template: what it reads is passed to it, and its renderer is one that was seen to agree."""

from __future__ import annotations

import pytest
from tests.tokens.families import official

from agentrl.errors import GatewayError
from agentrl.tokens.selection import load_renderer
from agentrl.tokens.template import ChatTemplate
from agentrl.tokens.vocabulary import Vocabulary

ASK = {"role": "user", "content": "What is 12 * 34?"}
SAID = {"role": "assistant", "content": "It is 408.", "reasoning_content": "Multiply."}


@pytest.fixture(scope="module")
def qwen3(make_tokenizer):
    return load_renderer(make_tokenizer(official("qwen3")))


def written(renderer, messages, **variables):
    """The prompt as transformers writes it."""
    text = renderer.vocabulary.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    return renderer.vocabulary.encode(text)


@pytest.mark.parametrize("messages", [[ASK], [ASK, SAID, ASK]], ids=len)
@pytest.mark.parametrize("thinking", [True, False])
def test_a_prompt_under_variables_is_what_the_template_writes_with_them(qwen3, messages, thinking):
    ids = qwen3.under({"enable_thinking": thinking}).render(messages)
    assert ids == written(qwen3, messages, enable_thinking=thinking)
    assert (ids == qwen3.render(messages)) == thinking


def test_a_renderer_of_the_library_is_taken_only_where_it_agrees(qwen3):
    assert qwen3.name == "qwen3"
    assert qwen3.under({"enable_thinking": True}).name == "qwen3"
    assert qwen3.under({"enable_thinking": False}).name == "default"


def test_no_variables_are_the_renderer_itself_and_equal_ones_are_chosen_once(qwen3):
    assert qwen3.under({}) is qwen3
    made = qwen3.under({"enable_thinking": False})
    assert qwen3.variants.known({"enable_thinking": False})
    assert qwen3.under({"enable_thinking": False}) is made


@pytest.mark.parametrize("name", ["enable_thinkin", "messages", "add_generation_prompt", "bos_token", "range", "tools"])
def test_a_variable_that_the_template_does_not_read_is_refused_by_its_name(qwen3, name):
    with pytest.raises(GatewayError, match=rf"chat_template_kwargs\.{name}: .* does not read .*enable_thinking") as e:
        qwen3.under({name: True})
    assert (e.value.status, e.value.param) == (400, f"chat_template_kwargs.{name}")
    assert not qwen3.variants.known({name: True})


@pytest.mark.parametrize(
    ("preferences", "resolved", "unmet"),
    [
        ({"reasoning_effort": "none"}, {"enable_thinking": False}, ()),
        ({"reasoning_effort": "minimal"}, {"enable_thinking": False}, ()),
        ({"reasoning_effort": "high", "verbosity": "low"}, {}, ("reasoning_effort", "verbosity")),
        ({"enable_thinking": False}, {"enable_thinking": False}, ()),
        ({}, {}, ()),
    ],
    ids=str,
)
def test_a_preference_is_a_variable_where_the_template_reads_it_and_unmet_where_not(
    qwen3, preferences, resolved, unmet
):
    assert qwen3.variants.resolve({}, preferences) == (resolved, unmet)


def test_a_variable_wins_over_a_preference(qwen3):
    assert qwen3.variants.resolve({"enable_thinking": True}, {"reasoning_effort": "none"}) == (
        {"enable_thinking": True},
        (),
    )


def test_an_effort_that_the_template_reads_reaches_it(make_tokenizer):
    source = "{{ reasoning_effort or 'usual' }}:{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    renderer = load_renderer(make_tokenizer(source))
    assert renderer.variants.resolve({}, {"reasoning_effort": "low"}) == ({"reasoning_effort": "low"}, ())
    low = renderer.under({"reasoning_effort": "low"})
    assert renderer.vocabulary.decode(low.render([ASK])) == "low:user What is 12 * 34?"
    assert renderer.vocabulary.decode(renderer.render([ASK])) == "usual:user What is 12 * 34?"


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("{{ a }}{% if b is defined %}x{% endif %}{{ c | default('y') }}", {"a", "b", "c"}),
        ("{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}", {"a"}),
        ("{% for m in messages %}{% if m.x %}{% set text = 1 %}{% endif %}{{ text }}{% endfor %}", set()),
        ("{% macro f(x) %}{{ x }}{{ y }}{% endmacro %}{{ f(z) }}{{ namespace(a=1).a }}{{ range(2) }}", {"y", "z"}),
        ("{{ bos_token }}{{ tools }}{{ add_generation_prompt }}{{ strftime_now('%Y') }}", set()),
    ],
)
def test_what_a_template_is_to_be_given_is_told_by_its_source(make_tokenizer, source, reads):
    turns = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    tokenizer = make_tokenizer(source + turns)
    tokenizer.bos_token = "<|im_start|>"
    assert ChatTemplate(Vocabulary(tokenizer), "the model").reads == reads


def test_control_tokens_are_kept_as_text_under_variables_too(make_tokenizer):
    renderer = load_renderer(make_tokenizer(official("qwen3")), plain_text=True)
    assert renderer.under({"enable_thinking": False}).plain_text


def test_a_renderer_that_does_not_follow_the_template_takes_no_variables(make_tokenizer):
    source = "{{ enable_thinking }}{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    renderer = load_renderer(make_tokenizer(source), "qwen3")
    with pytest.raises(GatewayError, match=r"does not read 'enable_thinking' \(it reads none"):
        renderer.under({"enable_thinking": False})
