"""The garbage collector during a run."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["settled_heap"]


@contextlib.contextmanager
def settled_heap() -> Iterator[None]:
    """Within it, collections pass over the objects that exist now.

    Those are the libraries', half a million that live as long as the process: walking them stops every
    thread for a tenth of a second and more, every few training steps, and finds nothing.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
