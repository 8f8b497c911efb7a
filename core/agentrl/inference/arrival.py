"""What an engine has sampled, looked at where it arrives: whether it could be what it claims to be."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

__all__ = ["Completed", "fault"]

_ROUNDING: Final = 1e-3
"""Above 0, what a logprob may come to in few bits."""
_LARGEST: Final = 2**31
"""Ids and versions are stored in 32 bits."""
_FEW: Final = 256
"""Numbers that Python compares in less time than numpy."""


class Completed(Protocol):
    """A whole completion, as in ``Chunk``."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def logprobs(self) -> Sequence[float]: ...

    @property
    def versions(self) -> Sequence[int]: ...

    @property
    def finish(self) -> str | None: ...


def fault(done: Completed, *, vocabulary: int | None = None, versions: tuple[int, int] | None = None) -> str | None:
    """What is wrong with a completion by itself; ``None`` where it could be right.

    ``vocabulary`` is how many ids the model knows; ``versions`` are the oldest and the newest policy version that its
    tokens may be of. Each column is looked at as a whole: thousands of tokens take a fraction of a millisecond.
    """
    count = len(done.ids)
    if done.finish not in ("stop", "length"):
        how = f"with finish={done.finish!r}, which is neither 'stop' nor 'length'"
        return f"a completion ended after {count} tokens {how}"
    if not count:
        return "a completion came without a token id"
    if len(done.logprobs) != count:
        return f"a completion of {count} ids came with {len(done.logprobs)} logprobs"
    if len(done.versions) != count:
        return f"a completion of {count} ids came with {len(done.versions)} policy versions"
    try:  # An array of the standard library takes no number of another kind in silence.
        ids, logprobs, dates = array("q", done.ids), array("d", done.logprobs), array("q", done.versions)
    except (TypeError, OverflowError) as error:
        return f"ids and versions of a completion are to be whole numbers, and logprobs numbers: {error}"
    least, most = _range(ids, np.int64)
    if least < 0 or most >= (vocabulary or _LARGEST):
        return f"a completion holds id {least if least < 0 else most}, and the vocabulary has {vocabulary or _LARGEST}"
    least, most = _range(logprobs, np.float64)
    if not (math.isfinite(least) and most <= _ROUNDING):
        return f"a token came with the logprob {least if most <= _ROUNDING else most:g}, which is none"
    oldest, newest = versions or (0, _LARGEST - 1)
    least, most = _range(dates, np.int64)
    if least < oldest or most > newest:
        given, wanted = least if least < oldest else most, f"{oldest}" if oldest == newest else f"{oldest} to {newest}"
        return f"tokens came as sampled under version {given} of the weights, which are of {wanted}"
    return None


def _range(values: array[int] | array[float], kind: type[np.generic]) -> tuple[float, float]:
    """The least and the greatest of ``values``, both NaN where one of them is."""
    if len(values) < _FEW and not math.isnan(sum(values)):  # Numpy takes longer to begin than all of this.
        return min(values), max(values)
    column = np.frombuffer(values, dtype=kind)
    return column.min().item(), column.max().item()
