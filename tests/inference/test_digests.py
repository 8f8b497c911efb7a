"""A tensor's digest is what its documentation says, and every changed bit changes it."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl import tensor_digest
from agentrl.inference.digests import ROW, _sums, _sums_on_gpu

MASK = 2**64 - 1
LENGTHS = (0, 1, 7, 8, 8 * ROW - 1, 8 * ROW, 8 * ROW + 3, 5 * 8 * ROW + 9)


def documented(data: bytes) -> str:
    """The digest, written after its description in Python's own integers."""
    state = hashlib.blake2b(len(data).to_bytes(8, "little"), digest_size=16)
    data += bytes(-len(data) % 8)
    words = [int.from_bytes(data[at : at + 8], "little", signed=True) for at in range(0, len(data), 8)]
    for start in range(0, len(words), ROW):
        low = high = 0
        for index, word in enumerate(words[start : start + ROW]):
            low += split_mix(index) * word
            high += split_mix(ROW + index) * (word >> 32)
        state.update((low & MASK).to_bytes(8, "little") + (high & MASK).to_bytes(8, "little"))
    return state.hexdigest()


def split_mix(index: int) -> int:
    word = (index + 1) * 0x9E3779B97F4A7C15 & MASK
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return word ^ word >> 31


def bytes_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", LENGTHS)
def test_the_digest_is_the_documented_one(count):
    data = bytes_of(count)
    assert tensor_digest(data) == documented(bytes(data.tolist()))


@settings(deadline=None)
@given(
    count=st.sampled_from(LENGTHS[1:]),
    seed=st.integers(0, 2**32),
    flipped=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, unique=True),
)
def test_flipped_bits_are_found(count, seed, flipped):
    data = bytes_of(count, seed)
    changed = data.clone()
    for where, bit in flipped:
        changed[int(where * count)] ^= 1 << bit
    assert (tensor_digest(changed) == tensor_digest(data)) == bool((changed == data).all())


def test_changes_that_cancel_in_a_plain_sum_are_found():
    values = torch.randn(96, 96)
    for other in (values.T, -values, values.flip(0), values.roll(1), values.view(48, 192).T.reshape(96, 96)):
        assert tensor_digest(other) != tensor_digest(values)
    rows = torch.randn(3, 2 * ROW)  # each is a row of the digest
    assert tensor_digest(rows[[1, 0, 2]]) != tensor_digest(rows)
    signs = values.clone()
    signs[0, 1], signs[0, 3] = -signs[0, 1], -signs[0, 3]  # the highest bits of two words
    assert tensor_digest(signs) != tensor_digest(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8])
def test_only_the_numbers_count_and_not_how_they_lie_in_memory(dtype):
    values = (torch.randn(70, 33) * 50).to(dtype)
    whole = torch.cat([values.new_zeros(1, 33), values, values])
    assert tensor_digest(whole[1:71]) == tensor_digest(values)  # begins within a word
    assert tensor_digest(values.T.contiguous().T) == tensor_digest(values)
    with torch.inference_mode():
        assert tensor_digest(values.clone()) == tensor_digest(values)


def test_what_a_gpu_computes_is_the_same():
    data = bytes_of(300 * 8 * ROW + 8)  # more rows than it takes at a time
    for part in (data[: 300 * 8 * ROW], data[8:]):
        assert (_sums_on_gpu(part) == _sums(part.numpy())).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("count", LENGTHS)
def test_a_gpu_finds_the_same_digest(count):
    data = bytes_of(count + 1)
    assert tensor_digest(data.cuda()[1:]) == tensor_digest(data[1:])
