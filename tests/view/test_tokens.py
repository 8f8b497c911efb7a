"""The tokens of a tree a page at a time: their places, texts and bytes, and the rows of the drawn tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import train_tokenizer
from tokenizers import Tokenizer

from agentrl.runs.contract import TrainedTokens
from agentrl.tokens.contract import ROOT, Sampled, TokenTree
from agentrl.view.pieces import Pieces
from agentrl.view.tokens import TokenView


@pytest.fixture(scope="module")
def chat_tokenizer() -> Tokenizer:
    tokenizer: Tokenizer = train_tokenizer().backend_tokenizer
    return tokenizer


def sampled(call, count):
    return Sampled(call, tuple(-0.5 * n for n in range(count)), (3,) * count, 1.0)


def forked():
    """A prompt of three tokens, a completion of two, a result of a tool, and a second completion of the prompt."""
    tree = TokenTree()
    prompt = tree.add_given([1, 2, 3])
    first = tree.add_sampled([4, 5], sampled("one", 2), prompt)
    tree.add_given([6], first)
    tree.add_sampled([7, 8, 9], sampled("two", 3), prompt)
    return tree


NAN = float("nan")
TRAINED = TrainedTokens(
    1,
    ("trained", "trained", "stale", "stale", "trained"),
    *((1.0, 2.0, NAN, NAN, 5.0), (0.1, 0.2, 0.0, 0.0, 0.5), (NAN,) * 5, (0.5,) * 5, (1.0,) * 5),
)


def test_every_token_has_its_place_its_depth_and_what_was_made_of_it():
    view = TokenView(forked(), TRAINED, Pieces(None))
    tokens = view.page(0, 100)
    assert [token.id for token in tokens] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [token.place for token in tokens] == [*range(9)]
    assert [token.depth for token in tokens] == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert [token.fate for token in tokens if token.is_sampled] == list(TRAINED.fates)
    assert [token.advantage for token in tokens if token.is_sampled] == [1.0, 2.0, None, None, 5.0]
    assert [token.version for token in tokens] == [None] * 3 + [3, 3, None, 3, 3, 3]
    assert view.first_sampled() == 3


@given(st.integers(0, 12), st.integers(0, 12))
def test_a_page_is_a_part_of_all_tokens(start, count):
    view = TokenView(forked(), TRAINED, Pieces(None))
    assert view.page(start, count) == view.page(0, 100)[start : start + count]


def test_each_fork_has_a_row_of_its_own():
    view = TokenView(forked(), None, Pieces(None))
    outline = view.outline(10)
    assert [(span.depth, span.size, span.lane, span.first) for span in outline] == [
        *((0, 3, 0, 0), (3, 2, 0, 3), (5, 1, 0, 5), (3, 3, 1, 6))
    ]
    assert view.outline(2) == outline[:2]


def test_an_empty_tree_has_no_tokens():
    view = TokenView(TokenTree(), None, Pieces(None))
    assert (len(view), view.page(0, 10), view.outline(10), view.first_sampled()) == (0, [], [], 0)


def test_a_token_that_is_no_whole_character_is_shown_by_its_bytes(chat_tokenizer: Tokenizer):
    tree = TokenTree()
    ids = chat_tokenizer.encode("ab \u20ac<|im_end|>").ids
    tree.add_given(ids, ROOT)
    pieces = Pieces(chat_tokenizer)
    tokens = TokenView(tree, None, pieces).page(0, 100)
    told = "".join(token.text for token in tokens if token.is_whole)
    assert told == "ab <|im_end|>"
    assert " ".join(token.text for token in tokens if not token.is_whole) == "E2 82 AC"
    assert [token.is_control for token in tokens][-1]
    assert pieces.text(ids) == "ab \u20ac<|im_end|>"
    assert pieces.bytes_of(10**6) is None
