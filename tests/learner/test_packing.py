"""Laws of the layout, over random paths of few different tokens, so that they share and branch a lot."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import RunError
from agentrl.learner.packing import attends, pack_forest, pack_rows, padded_size

paths_of_few_tokens = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=9).map(lambda ids: np.array(ids, dtype=np.int64)),
    min_size=1,
    max_size=9,
)


def every_position(paths):
    """A term at every depth of every path, last path first."""
    pairs = [(path, depth) for path in reversed(range(len(paths))) for depth in range(len(paths[path]))]
    return tuple(np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))


def seen_from(work, position):
    """The ids that a position attends to, itself included, in order."""
    everything = np.arange(work.ids_RT.shape[1])
    mask = attends(work.depth_RT[0], work.subtree_end_T, np.array([position]), everything, None)[0]
    return work.ids_RT[0][mask].tolist(), work.depth_RT[0][mask].tolist()


@given(paths_of_few_tokens, st.integers(9, 40))
def test_every_term_sees_exactly_its_own_path(paths, budget):
    term_path, term_depth = every_position(paths)
    found = []
    for work in pack_forest(paths, term_path, term_depth, budget):
        for term, position in zip(work.targets_N, work.position_N, strict=True):
            ids, depths = seen_from(work, position)
            assert ids == paths[term_path[term]][: term_depth[term] + 1].tolist()
            assert depths == list(range(len(ids)))
            found.append(term)
    assert sorted(found) == list(range(len(term_path)))


@given(paths_of_few_tokens, st.integers(9, 40))
def test_bins_keep_to_their_bound_and_hold_nothing_else(paths, budget):
    bins = pack_forest(paths, *every_position(paths), budget)
    assert all(work.ids_RT.shape == work.depth_RT.shape == (1, len(work.subtree_end_T)) for work in bins)
    assert all(work.ids_RT.size <= budget for work in bins)
    assert all(set(work.position_N) == set(range(work.ids_RT.size)) for work in bins)


@given(paths_of_few_tokens)
def test_a_bin_that_holds_all_stores_each_prefix_once(paths):
    (work,) = pack_forest(paths, *every_position(paths), 1000)
    prefixes = {tuple(path[: depth + 1]) for path in paths for depth in range(len(path))}
    assert work.ids_RT.size == len(prefixes)


@given(paths_of_few_tokens, st.integers(9, 25))
def test_no_other_cut_computes_fewer_tokens(paths, budget):
    bins = pack_forest(paths, *every_position(paths), budget)
    ordered = sorted(map(tuple, paths))
    assert sum(work.ids_RT.size for work in bins) + len(bins) == min(
        cost + len(cuts) + 1
        for count in range(len(ordered))
        for cuts in combinations(range(1, len(ordered)), count)
        if (cost := cost_of(ordered, cuts, budget)) is not None
    )


def cost_of(ordered, cuts, budget):
    edges = [0, *cuts, len(ordered)]
    sizes = [
        len({path[: depth + 1] for path in ordered[start:stop] for depth in range(len(path))})
        for start, stop in pairwise(edges)
    ]
    return sum(sizes) if max(sizes) <= budget else None


def test_equal_samples_are_two_terms_at_the_same_positions():
    paths = [np.array([1, 2, 3]), np.array([1, 2, 3])]
    (work,) = pack_forest(paths, np.array([0, 1]), np.array([2, 2]), 100)
    assert work.ids_RT.tolist() == [[1, 2, 3]]
    assert work.targets_N.tolist() == [0, 1]
    assert work.position_N.tolist() == [2, 2]


def test_a_batch_without_paths_has_no_bins():
    nothing = np.zeros(0, dtype=np.int64)
    assert pack_forest([], nothing, nothing, 100) == []
    assert pack_rows([], nothing, nothing, 100) == []


@pytest.mark.parametrize("lay", [pack_forest, pack_rows])
def test_a_path_longer_than_a_pass_names_the_setting(lay):
    with pytest.raises(RunError, match=r"12 tokens, .* training.tokens_per_batch=10 .*to 12 or more"):
        lay([np.arange(12)], np.array([0]), np.array([11]), 10)


@given(paths_of_few_tokens, st.integers(9, 40))
def test_rows_hold_every_term_within_their_bound(paths, budget):
    term_path, term_depth = every_position(paths)
    passes = pack_rows(paths, term_path, term_depth, budget)
    assert all(work.ids_RT.size <= budget for work in passes)
    assert sum(work.ids_RT.size for work in passes) == padded_size([len(path) for path in paths], budget)
    found = []
    for work in passes:
        for term, row, position in zip(work.targets_N, work.row_N, work.position_N, strict=True):
            assert work.ids_RT[row, : position + 1].tolist() == paths[term_path[term]][: term_depth[term] + 1].tolist()
            found.append(term)
    assert sorted(found) == list(range(len(term_path)))
