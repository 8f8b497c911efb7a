"""A tokenizer from any thread: the same ids as the tokenizer's own, and bytes that add up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.tokens.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary(chat_tokenizer):
    return Vocabulary(chat_tokenizer)


@given(st.text())
def test_encoding_is_the_tokenizers_own(chat_tokenizer, vocabulary, text):
    assert vocabulary.encode(text) == chat_tokenizer.encode(text, add_special_tokens=False)


@given(st.text())
def test_the_bytes_of_the_pieces_are_those_of_the_text(vocabulary, text):
    assert b"".join(vocabulary.piece(token)[1] for token in vocabulary.encode(text)) == text.encode()


def test_only_tokens_of_one_piece_have_an_id(vocabulary, chat_tokenizer):
    assert vocabulary.special_id("<think>") == chat_tokenizer.convert_tokens_to_ids("<think>")
    assert vocabulary.special_id("<nothing>") is None


def test_a_caller_may_change_the_ids_it_was_given(vocabulary):
    vocabulary.encode("It is 408.").clear()
    assert vocabulary.encode("It is 408.")


def test_a_tokenizers_padding_and_truncation_do_not_reach_in(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(max_length=2)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    ids = Vocabulary(tokenizer).encode("It is 408. It is 408.")
    assert tokenizer.decode(ids) == "It is 408. It is 408."


def test_many_threads_encode_at_once(vocabulary):
    texts = [f"It is {number}." for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(vocabulary.encode, texts))
    assert [vocabulary.decode(each) for each in ids] == texts
