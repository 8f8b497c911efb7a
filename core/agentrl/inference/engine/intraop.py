"""How many CPU threads a step uses."""

from __future__ import annotations

import threading

import torch
from torch import nn

__all__ = ["limit_threads", "threads_for"]

_SMALL = 20_000_000
"""Parameters below which two threads gain nothing, and lose much where another process wants a core."""


def threads_for(model: nn.Module) -> int:
    """One for a small model, else torch's own number."""
    small = sum(parameter.numel() for parameter in model.parameters()) < _SMALL
    return 1 if small else torch.get_num_threads()


def limit_threads(count: int) -> None:
    """Let this thread's operations use ``count`` CPU threads, and leave every other thread as it was.

    ``torch.set_num_threads`` sets the caller's number and what threads to come start with: a thread that
    ends at once puts the latter back.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    restore = threading.Thread(target=torch.set_num_threads, args=(before,))
    restore.start()
    restore.join()
