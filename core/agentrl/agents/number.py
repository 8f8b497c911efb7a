"""Numbers of any kind as floats."""

from __future__ import annotations

import math
import numbers
from decimal import Decimal
from typing import Any

__all__ = ["as_number"]


def as_number(value: Any) -> float | None:
    """``value`` as a float if it is a real number of any type, numpy's and bool included; else ``None``.

    What no float can hold becomes an infinity, and a NaN of any kind is one: whether a number is finite is for the
    caller to ask. Text, complex numbers, dates and lengths of time are no real numbers, whatever can be made of them.
    """
    if getattr(getattr(value, "dtype", None), "kind", None) == "m":  # To numpy a length of time is an integer.
        return None
    if isinstance(value, numbers.Real | Decimal):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf  # type: ignore[operator]  # Real has no order for mypy.
        except ValueError:  # Decimal's signalling NaN
            return math.nan
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        inner = value.item()  # numpy.bool_, and zero-dimensional arrays and tensors
        return None if getattr(inner, "shape", None) == () else as_number(inner)
    return None
