"""What a step made of an episode's tokens, as a row of the table ``trained`` and back.

Numbers are little-endian arrays with an item a sampled token: float32 where single precision holds all of them exactly,
else float64, NaN where there is none. A column in which no token has a value is NULL, and one in which more than two
tokens all have the same value is that one value as float64: most advantages and weights are.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

from agentrl.rollout.contract import Episode, EpisodeKey, Fate
from agentrl.runs.contract import TokenFate, TrainedEpisode, TrainedTokens

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "FATES",
    "TrainedRow",
    "numbers",
    "packed",
    "row_left_out",
    "row_of",
    "rows_of",
    "single",
    "trained_row",
    "trained_tokens",
]

FATES: Final[tuple[TokenFate, ...]] = get_args(TokenFate)
"""What the numbers in the column ``fates`` mean."""
_NUMBER_OF: Final = {fate: number for number, fate in enumerate(FATES)}


class TrainedRow(NamedTuple):
    """What a step made of an episode, ready to be stored."""

    key: EpisodeKey
    fate: Fate
    advantage: float | None
    """``TrainedEpisode.advantage``."""
    tokens: int
    """How many tokens are told of."""
    columns: tuple[Any, ...]
    """Those of ``trained`` after ``episode``."""

    @property
    def step(self) -> int:
        """The optimiser step."""
        return int(self.columns[0])


def row_of(episode: TrainedEpisode) -> TrainedRow:
    """``episode`` as a row."""
    tokens = episode.tokens
    return TrainedRow(episode.key, episode.fate, episode.advantage, len(tokens.fates), trained_row(tokens))


def rows_of(
    step: int,
    episodes: Sequence[tuple[EpisodeKey, Fate]],
    lengths: Sequence[int],
    fates: npt.NDArray[np.uint8],
    columns: Sequence[npt.NDArray[np.float64]],
) -> Iterator[TrainedRow]:
    """Yield the rows of many episodes, from arrays over the tokens of all of them, one episode after the other.

    ``lengths`` has how many tokens each of ``episodes`` has, ``fates`` are indices in ``FATES``, and ``columns`` are
    advantages, weights, log-probabilities, entropies and importances, NaN where there are none. A token takes a few
    nanoseconds, and a hundred times as many where it is a Python object.
    """
    import numpy as np  # Here, because a base install has none.

    number = np.repeat(np.arange(len(lengths)), lengths)
    is_trained = fates == _NUMBER_OF["trained"]
    counts = np.bincount(number[is_trained], minlength=len(lengths)).tolist()
    sums = np.bincount(number[is_trained], columns[0][is_trained], minlength=len(lengths)).tolist()
    spelled = fates.tobytes()
    made = [_Spelled(column) for column in columns]
    start = 0
    for (key, fate), length, count, total in zip(episodes, lengths, counts, sums, strict=True):
        stop = start + length
        row = (step, spelled[start:stop], *(column.between(start, stop) for column in made))
        yield TrainedRow(key, fate, total / count if count else None, length, row)
        start = stop


def row_left_out(step: int, episode: Episode, fate: Fate) -> TrainedRow:
    """The row of an ``episode`` that ``step`` consumed and did not train."""
    count = sum(len(span.ids) for span in episode.tree.spans if span.sampled is not None)
    fates = bytes([_NUMBER_OF["left_out"]]) * count
    return TrainedRow(episode.key, fate, None, count, (step, fates, None, None, None, None, None))


class _Spelled:
    """A column over the tokens of many episodes, in both precisions."""

    def __init__(self, values: npt.NDArray[np.float64]) -> None:
        import numpy as np

        double = values.astype("<f8")
        with np.errstate(over="ignore", invalid="ignore"):
            single = double.astype("<f4")
        self._double, self._single = double.tobytes(), single.tobytes()
        self._again = single.astype("<f8").tobytes()

    def between(self, start: int, stop: int) -> bytes | None:
        """What ``_column`` makes of those tokens."""
        first, last = 8 * start, 8 * stop
        double = self._double[first:last]
        is_one, value = _one(double, stop - start)
        if is_one:
            return value
        return self._single[4 * start : 4 * stop] if self._again[first:last] == double else double


def trained_row(tokens: TrainedTokens) -> tuple[Any, ...]:
    """The columns of ``trained`` after ``episode``."""
    return (
        tokens.step,
        bytes(map(_NUMBER_OF.__getitem__, tokens.fates)),
        _column(tokens.advantages),
        _column(tokens.weights),
        _column(tokens.logprobs),
        _column(tokens.entropies),
        _column(tokens.importances),
    )


def trained_tokens(row: Sequence[Any]) -> TrainedTokens:
    """What ``trained_row`` took."""
    step, fates, *columns = row
    values = (_values(column, len(fates)) for column in columns)
    return TrainedTokens(step, tuple(FATES[number] for number in fates), *values)


def _column(values: Sequence[float]) -> bytes | None:
    double = array("d", values)
    packed_values = packed(double)
    is_one, value = _one(packed_values, len(double))
    if is_one:
        return value
    exact = single(double)
    return packed_values if exact is None else packed(exact)


def _one(double: bytes, count: int) -> tuple[bool, bytes | None]:
    """Whether one value stands for all of a column, which is given as float64, and that value."""
    first = double[:8]
    if not count or first * count != double:
        return False, None
    (value,) = numbers("d", first)
    return (True, None) if value != value else (count > 2, first)


def _values(column: bytes | None, count: int) -> tuple[float, ...]:
    if column is None:
        return (float("nan"),) * count
    if len(column) == 8 and count > 2:
        return tuple(numbers("d", column)) * count
    return tuple(numbers("f" if len(column) == 4 * count else "d", column))


def single(values: array[float]) -> array[float] | None:
    """``values`` in single precision; ``None`` where it does not hold all of them exactly."""
    try:
        rounded = array("f", values)
    except OverflowError:
        return None
    # Of equal bits, and not merely equal: a NaN is equal to nothing.
    return rounded if array("d", rounded).tobytes() == values.tobytes() else None


def packed(values: array[Any]) -> bytes:
    """``values`` as little-endian bytes."""
    if sys.byteorder == "big":
        values = array(values.typecode, values)
        values.byteswap()
    return values.tobytes()


def numbers(typecode: str, data: bytes) -> list[Any]:
    """What ``packed`` took, where its array had this ``typecode``."""
    values: array[Any] = array(typecode)
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
