"""What a custom tool is called with, read from arguments that grow; and the tokens that a text is made of."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.gateway.contract import Tokens
from agentrl.gateway.dialects.responses.free_text import FreeText
from agentrl.gateway.dialects.responses.spoken import Spoken

TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\/\n\t\u0000\U0001f600{}'), max_size=30)


def read(arguments: str, cuts: list[int]) -> tuple[str, FreeText]:
    """What is told of ``arguments``, which come in parts of these lengths."""
    free, told, at = FreeText(), "", 0
    for cut in [*cuts, len(arguments)]:
        told += free.more(arguments[at : at + cut])
        at += cut
    return told + free.end(), free


@given(TEXTS, st.booleans(), st.sampled_from([None, 1]), st.lists(st.integers(1, 7), max_size=40))
def test_it_is_the_text_however_it_is_written_and_cut(text, ascii_only, indent, cuts):
    told, free = read(json.dumps({"input": text}, ensure_ascii=ascii_only, indent=indent), cuts)
    assert told == free.text == text
    assert free.exact


@given(TEXTS, st.integers(0, 60), st.lists(st.integers(1, 7), max_size=40))
def test_of_what_is_cut_off_it_is_the_beginning(text, end, cuts):
    whole = json.dumps({"input": text})
    told, free = read(whole[:end], cuts)
    begun = end >= len('{"input": "')
    assert text.startswith(told) if begun else told == whole[:end]
    assert free.exact == (end >= len(whole))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a", "more": 1}', "a"),
        ('{"more": 1, "input": "a"}', "a"),
        ('{"text": "a"}', '{"text": "a"}'),
        ('{"input": 3}', '{"input": 3}'),
        ("[]", "[]"),
        ("*** Begin", "*** Begin"),
        ('{"input": "a\\x', "ax"),
        ('{"input": "\\ud83d!"}', "\ufffd!"),
        ('{"more": 1, "input": "\\ud83d!"}', "\ufffd!"),
        ('{"input": "line\nbreak"}', "line\nbreak"),
    ],
)
def test_of_other_arguments_it_says_what_it_can_and_that_it_is_not_all(arguments, text):
    told, free = read(arguments, [1] * len(arguments))
    assert (told, free.text, free.arguments) == (text, text, arguments)
    assert not free.exact


@given(st.lists(TEXTS, min_size=1, max_size=6), st.data())
def test_the_tokens_of_texts_are_told_once_and_in_their_order(texts, data):
    """Tokens are single bytes, the worst there are, with marks in between."""
    spoken, taken = Spoken(), []
    for text in texts:
        raw = b"\xff" + text.encode()
        spoken.add(Tokens(tuple(raw), (-1.0,) * len(raw), piece=lambda token, before: bytes([token])))
    for text in texts:
        tokens = spoken.take(text)
        assert bytes(tokens.ids) == text.encode()
        taken += tokens.ids
    assert len(taken) <= spoken.taken <= sum(len(text.encode()) + 1 for text in texts)
