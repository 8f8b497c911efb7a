"""What a step made of an episode's tokens, as a row of the table ``trained`` and back.

Numbers are little-endian arrays with an item a sampled token: float32 where single precision holds all of them exactly,
else float64, NaN where there is none. A column in which no token has a value is NULL, and one in which more than two
tokens all have the same value is that one value as float64: most advantages and weights are.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import Any, Final, get_args

from agentrl.runs.contract import TokenFate, TrainedTokens

__all__ = ["numbers", "packed", "single", "trained_row", "trained_tokens"]

FATES: Final[tuple[TokenFate, ...]] = get_args(TokenFate)
"""What the numbers in the column ``fates`` mean."""
_NUMBER_OF: Final = {fate: number for number, fate in enumerate(FATES)}


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
    same = packed_values[:8] * len(double) == packed_values
    if same and len(double) and double[0] != double[0]:
        return None
    if same and len(double) > 2:
        return packed_values[:8]
    exact = single(double)
    return packed_values if exact is None else packed(exact)


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
