"""Digests of tensors: a fingerprint of the bits, the same on every device, at about the speed of memory.

Learner and engine compute it of the same numbers in the same type, each from its own memory, and equal digests show
that every bit arrived. It imports nothing of agentrl, so that the file can be copied into an interpreter that has only
torch and numpy, such as that of a server.

A tensor is read as its bytes, little-endian and in row-major order, filled up with zeros to whole words of 64 bits. The
words are signed integers, in rows of ``ROW``. A row ``x`` has two sums in the integers modulo 2**64::

    a = Σ w[j] · x[j]          b = Σ v[j] · (x[j] >> 32)

where ``w`` and ``v`` are the outputs 0 … ``ROW`` - 1 and ``ROW`` … 2 · ``ROW`` - 1 of SplitMix64 from the state 0. The
digest is BLAKE2b, to 16 bytes, of the count of bytes and then ``a`` and ``b`` of row after row, each in eight bytes.

For two different rows, at most a share of 2**-33 of all choices of ``w`` and ``v`` gives the same two sums: a
multilinear hash misses a change whose lowest bit is bit ``t`` of a word with probability 2**(t - 64) (Lemire and
Kaser, "Strongly universal string hashing is fast", The Computer Journal 57, 2014), and by the second sum ``t`` is at
most 31 for the upper half of a word too. It is no signature: whoever chooses the numbers to deceive it can.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

__all__ = ["tensor_digest"]

ROW = 8192
"""Words in a row."""
_CPU_ROWS = 4
"""Rows at a time on a CPU, whose cache holds them and what is computed of them."""
_GPU_ROWS = 256
"""Rows at a time on a GPU: 16 MiB, of which copies are made."""


def tensor_digest(tensor: torch.Tensor) -> str:
    """Returns the digest of a tensor's bits, of any type and on any device, as 32 hexadecimal digits.

    The type and the shape are not part of it. On a GPU everything but the sums of rows stays there.
    """
    import numpy as np
    import torch

    flat = tensor.detach().contiguous().view(-1)
    size = flat.numel() * flat.element_size()
    data = flat.view(torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
    whole = size // (8 * ROW) * 8 * ROW
    parts = []
    if whole:
        parts.append(_sums_on_gpu(data[:whole]) if data.is_cuda else _sums(data[:whole].cpu().numpy()))
    if whole < size:
        rest = np.zeros(-(-(size - whole) // 8) * 8, np.uint8)
        rest[: size - whole] = data[whole:].cpu().numpy()
        parts.append(_sums(rest))
    state = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
    for part in parts:
        state.update(np.ascontiguousarray(part, "<i8").tobytes())
    return state.hexdigest()


def _sums(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """``[rows, 2]``: both sums of each row; of a single row that is shorter, too."""
    import numpy as np

    words = data.view(np.int64)
    width = min(ROW, len(words))
    rows = words.reshape(-1, width)
    low, high = (each[:width] for each in _multipliers())
    sums = np.empty((len(rows), 2), np.int64)
    upper = np.empty((min(_CPU_ROWS, len(rows)), width), np.int64)
    for start in range(0, len(rows), _CPU_ROWS):
        some = rows[start : start + _CPU_ROWS]
        halves = np.right_shift(some, 32, out=upper[: len(some)])
        # Integers wrap around here, and einsum takes a third less time than dot.
        np.einsum("ij,j->i", some, low, out=sums[start : start + len(some), 0])
        np.einsum("ij,j->i", halves, high, out=sums[start : start + len(some), 1])
    return sums


def _sums_on_gpu(data: torch.Tensor) -> npt.NDArray[np.int64]:
    """As ``_sums``, of whole rows."""
    import torch

    rows = _words(data).view(-1, ROW)
    low, high = (torch.from_numpy(each).to(data.device) for each in _multipliers())
    sums = [
        torch.stack([(some * low).sum(1), ((some >> 32) * high).sum(1)], dim=1) for some in torch.split(rows, _GPU_ROWS)
    ]
    found: npt.NDArray[np.int64] = torch.cat(sums).cpu().numpy()
    return found


def _words(data: torch.Tensor) -> torch.Tensor:
    """``data`` as 64-bit integers: a copy where it does not begin at a whole word."""
    import torch

    return (data if data.storage_offset() % 8 == 0 else data.clone()).view(torch.int64)


@cache
def _multipliers() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """``w`` and ``v``."""
    import numpy as np

    words = np.arange(1, 2 * ROW + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    low, high = words.view(np.int64).reshape(2, ROW)
    return low.copy(), high.copy()
