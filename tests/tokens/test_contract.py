"""The laws of the token tree, held for random histories over a small alphabet, where much repeats."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.tokens.contract import ROOT, Position, Sampled, TokenTree

TOKENS = st.lists(st.integers(0, 2), max_size=6)
ADDITIONS = st.lists(st.tuples(st.booleans(), TOKENS, st.integers(0, 1000), st.integers(0, 1000)), max_size=12)


def sampled(call: str, length: int) -> Sampled:
    return Sampled(call, (-0.25,) * length, tuple(range(length)), 0.7)


def places(tree: TokenTree) -> list[Position]:
    return [ROOT, *(Position(i, n) for i, span in enumerate(tree.spans) for n in range(len(span.ids) + 1))]


def grow(additions: list[tuple[bool, list[int], int, int]]) -> tuple[TokenTree, list[tuple[Position, list[int]]]]:
    """A tree, and for every addition the position that it returned and the path that it must have."""
    tree, expected = TokenTree(), []
    for number, (sample, ids, pick, _) in enumerate(additions):
        at = places(tree)[pick % len(places(tree))]
        before = tree.path(at)
        if sample and ids:
            position = tree.add_sampled(ids, sampled(f"call-{number}", len(ids)), at)
        else:
            position = tree.add_given(ids, at)
        expected.append((position, before + ids))
    return tree, expected


@given(ADDITIONS)
def test_a_position_leads_back_to_every_token_added_before_it(additions):
    tree, expected = grow(additions)
    for position, path in expected:
        assert tree.path(position) == path


@given(ADDITIONS, st.lists(st.integers(0, 2), max_size=12), st.integers(0, 1000))
def test_walk_goes_as_deep_as_any_recorded_history(additions, ids, pick):
    tree, _ = grow(additions)
    start = places(tree)[pick % len(places(tree))]
    position, matched = tree.walk(ids, start)
    assert tree.path(position) == tree.path(start) + ids[:matched]
    longer = [place for place in places(tree) if descends(tree, place, tree._settled(start))]
    assert matched == max(common(tree.path(place)[len(tree.path(start)) :], ids) for place in longer)


def descends(tree: TokenTree, place: Position, start: Position) -> bool:
    """Whether ``place`` lies at or below ``start``, by going up its parents."""
    while place.span > start.span:
        span = tree.spans[place.span]
        place = Position(span.parent, span.fork)
    return place.span == start.span and place.offset >= start.offset


def common(left: list[int], right: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


@given(ADDITIONS)
def test_given_tokens_are_stored_once_and_sampled_ones_never_shared(additions):
    tree, _ = grow(additions)
    completions = [ids for sample, ids, _, _ in additions if sample and ids]
    assert [list(span.ids) for span in tree.spans if span.sampled] == completions
    size = len(tree)
    for span in range(len(tree.spans)):
        tree.add_given(tree.path(Position(span, len(tree.spans[span].ids))))
    assert len(tree) == size


@given(ADDITIONS)
def test_given_siblings_begin_differently(additions):
    tree, _ = grow(additions)
    firsts = [(span.parent, span.fork, span.ids[0]) for span in tree.spans if span.sampled is None]
    assert len(firsts) == len(set(firsts))


@given(ADDITIONS)
def test_json_brings_back_the_same_tree(additions):
    tree, _ = grow(additions)
    again = TokenTree.from_json(json.loads(json.dumps(tree.to_json())))
    assert again == tree
    assert again.walk([0, 1, 2]) == tree.walk([0, 1, 2])


@given(ADDITIONS)
def test_a_parent_comes_before_its_children(additions):
    tree, _ = grow(additions)
    for index, span in enumerate(tree.spans):
        assert -1 <= span.parent < index
        assert 0 <= span.fork <= (len(tree.spans[span.parent].ids) if span.parent >= 0 else 0)


def test_history_passes_through_a_completion_and_of_two_equal_ones_the_older():
    tree = TokenTree()
    prompt = tree.add_given([1, 2])
    first = tree.add_sampled([3, 4], sampled("a", 2), prompt)
    tree.add_sampled([3, 4], sampled("b", 2), prompt)
    assert tree.walk([1, 2, 3, 4, 5]) == (first, 4)
    assert tree.add_given([1, 2, 3, 4, 5]).span == 3
    assert tree.spans[3].parent == first.span


def test_a_history_that_differs_inside_a_span_forks_there():
    tree = TokenTree()
    tree.add_given([1, 2, 3, 4])
    position = tree.add_given([1, 2, 9])
    assert tree.spans[position.span].parent == 0
    assert tree.spans[position.span].fork == 2
    assert len(tree) == 5


@pytest.mark.parametrize(("ids", "length"), [([], 0), ([1, 2], 1)])
def test_a_completion_without_tokens_or_with_other_logprobs_is_refused(ids, length):
    with pytest.raises(ValueError, match="sampled ids"):
        TokenTree().add_sampled(ids, sampled("a", length), ROOT)


def test_a_long_chain_of_turns_is_read_and_walked_whole():
    tree, end = TokenTree(), ROOT
    for step in range(200):
        end = tree.add_given([step] * 50, end)
        end = tree.add_sampled([step + 1, 7], sampled(str(step), 2), end)
    path = tree.path(end)
    assert len(path) == 200 * 52
    assert tree.walk(path) == (end, len(path))
