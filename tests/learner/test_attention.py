"""Tree attention in blocks, and FlexAttention, against one dense masked softmax."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.learner import attention, kernels, packing
from agentrl.learner.attention import FlexForest, ForestAttention
from agentrl.learner.packing import attends, cut_blocks, pack_forest


@st.composite
def layouts(draw):
    """Depths and subtree ends of a bin of random trees."""
    source = random.Random(draw(st.integers(0, 10_000)))
    longest = draw(st.sampled_from([3, 12, 40]))
    paths = [
        np.array([source.randrange(2) if depth % 5 == 0 else 0 for depth in range(source.randint(1, longest))])
        for _ in range(draw(st.integers(1, 8)))
    ]
    nothing = np.zeros(0, dtype=np.int64)
    (work,) = pack_forest(paths, nothing, nothing, 10_000)
    return work.depth_RT[0], work.subtree_end_T


windows = st.sampled_from([None, 1, 3, 10])


def heads(count, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, count, tokens, 8, dtype=torch.float64, generator=generator, requires_grad=True)


def dense(query, key, value, scale, mask):
    served = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(served, 1), value.repeat_interleave(served, 1)
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~torch.from_numpy(mask), -torch.inf)
    return scores.softmax(-1) @ value


@settings(max_examples=60)
@given(layouts(), windows, st.sampled_from([0, 6, 1000]))
def test_blocks_cover_each_pair_that_attends_once(layout, window, tile):
    depth, subtree_end = layout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "TILE", tile)
        cut = cut_blocks(depth, subtree_end, window)
    seen = np.zeros((len(depth), len(depth)), dtype=int)
    for block in [*cut.own, *cut.above]:
        shape = seen[block.queries, block.keys].shape
        mask = np.ones(shape, dtype=bool) if block.mask is None else block.mask
        seen[block.queries, block.keys] += np.tril(mask) if block.causal else mask
    for tiles in cut.tiles:
        for index, valid, number in zip(tiles.index, tiles.valid, range(len(tiles.index)), strict=True):
            mask = np.tril(np.ones((len(index),) * 2, dtype=bool)) if tiles.mask is None else tiles.mask[number]
            seen[np.ix_(index[valid], index[valid])] += mask[np.ix_(valid, valid)]
    everything = np.arange(len(depth))
    assert np.array_equal(seen, attends(depth, subtree_end, everything, everything, window).astype(int))


PLAIN = kernels.AttentionKernel(kernels.plain_forward, kernels.plain_backward)


@settings(max_examples=60)
@given(layouts(), windows, st.sampled_from([0, 6, 1000]), st.sampled_from([1, 2, 4]), st.sampled_from([None, PLAIN]))
def test_attention_and_its_gradient_equal_the_dense_softmax(layout, window, tile, key_heads, kernel):
    depth, subtree_end = layout
    query, key, value = heads(4, len(depth), 1), heads(key_heads, len(depth), 2), heads(key_heads, len(depth), 3)
    everything = np.arange(len(depth))
    mask = attends(depth, subtree_end, everything, everything, window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "TILE", tile)
        patch.setattr(kernels, "QUERIES", 7)
        patch.setattr(attention, "attention_kernel", lambda: kernel or kernels.attention_kernel())
        output = ForestAttention(depth, subtree_end)(query, key, value, 0.7, window)
        weight = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        gradients = torch.autograd.grad((output * weight).sum(), (query, key, value))
    expected = dense(query, key, value, 0.7, mask)
    torch.testing.assert_close(output, expected)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("window", [None, 3])
def test_flex_attention_sees_the_same(window):
    source = random.Random(0)
    paths = [np.array([source.randrange(2) for _ in range(source.randint(1, 12))]) for _ in range(9)]
    nothing = np.zeros(0, dtype=np.int64)
    (work,) = pack_forest(paths, nothing, nothing, 10_000)
    depth, everything = work.depth_RT[0], np.arange(work.ids_RT.size)
    inputs = [heads(count, work.ids_RT.size, count).detach() for count in (4, 2, 2)]
    mask = attends(depth, work.subtree_end_T, everything, everything, window)
    forest = FlexForest(torch.from_numpy(depth), torch.from_numpy(work.subtree_end_T))
    torch.testing.assert_close(forest(*inputs, 0.7, window), dense(*inputs, 0.7, mask))


def test_the_fused_kernel_is_used_where_it_does_what_it_should():
    kernels.attention_kernel.cache_clear()
    assert kernels.attention_kernel() != PLAIN


def shifted(query, *others, **named):
    output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, *others, **named)
    return output, log_sum + 1.0


def renamed(query, key):
    raise AssertionError


@pytest.mark.parametrize(
    ("forward", "reason"), [(shifted, "gives other values"), (renamed, "is not called as it was: TypeError")]
)
def test_another_kernel_of_that_name_is_not_used(forward, reason, monkeypatch):
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    monkeypatch.setattr(kernels, "fused_kernel", lambda: kernels.AttentionKernel(forward, backward))
    kernels.attention_kernel.cache_clear()
    with pytest.warns(UserWarning, match=rf"{reason}, so the learner uses a slower one"):
        assert kernels.attention_kernel() == PLAIN
    kernels.attention_kernel.cache_clear()


def test_a_torch_without_the_kernel_goes_on_without(monkeypatch):
    monkeypatch.setattr(kernels, "FUSED", "_attention_of_another_version")
    kernels.attention_kernel.cache_clear()
    with pytest.warns(UserWarning, match="AttributeError, so the learner uses a slower one"):
        assert kernels.attention_kernel() == PLAIN
    kernels.attention_kernel.cache_clear()
