"""Control tokens found in texts, and texts encoded without them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokens.families import FAMILIES, tokenizer

from agentrl.tokens.vocabulary import ControlTokens, Vocabulary

NAMES = ["qwen3", "mistral", "phi-3.5", "gemma-3", "llama-3.2", "deepseek-v3"]
ALL = {name: Vocabulary(tokenizer(name)) for name in NAMES}


def control(name):
    return ControlTokens(ALL[name].added_ids(FAMILIES[name].template))


def asked(text):
    return [{"role": "user", "content": text}]


@given(st.sets(st.text("<ab|>", min_size=2, max_size=5), max_size=20), st.text("<ab|>", max_size=30))
def test_the_longest_token_is_found_at_each_place(tokens, text):
    alternatives = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)"
    found = ControlTokens(dict.fromkeys(tokens, 0)).given(asked(text))
    assert list(found) == list(dict.fromkeys(re.findall(alternatives, text)))


@settings(max_examples=40)
@given(st.sampled_from(NAMES), st.data())
def test_plain_text_holds_no_control_token_and_every_character(name, data):
    vocabulary, family = ALL[name], FAMILIES[name]
    pieces = st.sampled_from([*family.special, *family.marks, "x", " ", "<|im_", "é🙂", "\n"])
    text = "".join(data.draw(st.lists(pieces, max_size=8)))
    (marked,) = control(name).plain(asked(text), [frozenset()], given=True)
    ids = vocabulary.encode(marked["content"])
    assert vocabulary.decode(ids) == text
    assert not set(ids) & set(vocabulary.added_ids(family.template).values())


@pytest.mark.parametrize("name", NAMES)
def test_beside_a_plain_one_the_others_are_as_ever(name):
    vocabulary, family = ALL[name], FAMILIES[name]
    one, other = family.special[0], family.special[1]
    (marked,) = control(name).plain(
        [{"role": "assistant", "content": f"a{one}{other} b{one}c"}], [frozenset({other})], given=True
    )
    ids = vocabulary.encode(marked["content"])
    assert ids.count(vocabulary.convert_tokens_to_ids(one)) == 2
    assert vocabulary.convert_tokens_to_ids(other) not in ids
    plain = f"a{one}% b{one}c"
    assert [token for token in vocabulary.encode(plain) if token in vocabulary.special_ids] == [
        token for token in ids if token in vocabulary.special_ids
    ]


def test_words_that_a_template_does_not_write_are_no_control_tokens():
    tokens = tokenizer("qwen3")
    tokens.add_tokens(["<table>"])
    assert "<table>" not in Vocabulary(tokens).added_ids(FAMILIES["qwen3"].template)
    assert "<tool_call>" in Vocabulary(tokens).added_ids(FAMILIES["qwen3"].template)
