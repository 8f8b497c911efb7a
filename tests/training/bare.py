"""A scheduler that starts no processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Bare:
    def run(self, train: Callable[[], Result]) -> Result:
        return train()
