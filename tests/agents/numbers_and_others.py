"""Values that look like numbers, by what they are, for tests of everything that takes a reward."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch

NO_NUMBERS: dict[str, Any] = {
    "text": "0.5",
    "numpy's text": np.str_("1.0"),
    "bytes": b"1",
    "numpy's bytes": np.bytes_(b"1"),
    "a list": [1.0],
    "an object": object(),
    "an array": np.array([1.0]),
    "an array of text": np.array("1.0"),
    "a complex number": 1j,
    "numpy's complex number": np.complex64(1),
    "a complex tensor": torch.tensor(1 + 0j),
    "a date": date(2026, 1, 1),
    "numpy's date": np.datetime64("2026-01-01"),
    "a length of time": timedelta(seconds=1),
    "numpy's length of time": np.timedelta64(1, "s"),
    "an array of no axis of such": np.array(np.timedelta64(1, "s")),
    "a tensor of two": torch.tensor([1.0, 2.0]),
}
NOT_FINITE: dict[str, Any] = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "numpy's infinity": np.float32("inf"),
    "a tensor's NaN": torch.tensor(float("nan")),
    "an integer that no float holds": 10**400,
    "a negative one": -(10**400),
    "an integer too long to be written": 10**5000,
    "a fraction that no float holds": Fraction(10**400),
    "a decimal that no float holds": Decimal("1e400"),
    "a decimal NaN": Decimal("NaN"),
    "a signalling NaN": Decimal("sNaN"),
}
REFUSED = NO_NUMBERS | NOT_FINITE
