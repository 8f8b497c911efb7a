"""How many CPU threads a pass uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["threads_for_pass"]

_WORTH_SHARING = 500_000_000
"""Parameters times tokens of a pass from which on a second thread gains more than it costs to wake it. Tried with
0.4 million parameters within runs: with 240 tokens two threads took 1.4 times as long as one, with 900 as long."""


@contextmanager
def threads_for_pass(parameters: int, tokens: int) -> Iterator[None]:
    """Within it, this thread's operations use one CPU thread where the pass is a small one."""
    before = torch.get_num_threads()
    if parameters * tokens >= _WORTH_SHARING:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
