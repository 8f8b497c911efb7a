"""How many CPU threads the operations of torch use, thread by thread.

``torch.set_num_threads`` changes two numbers: the caller's own, and the one that every thread takes over that has its
first operation from then on, and keeps. So nobody here calls it by itself: a thread that had its first operation at
the wrong moment would compute with too few threads for ever, and with other roundings than in another run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

__all__ = ["ThreadLimit", "all_shared", "threads", "use_threads"]

SECOND_THREAD = 500_000_000
"""Parameters times tokens of a pass from which on a second CPU thread gains more than it costs to wake it. Measured
with 0.4 million parameters within runs: with 240 tokens two threads took 1.4 times as long as one, with 900 as long."""


class _Here(threading.local):
    count = 0
    """How many threads the calling thread was told to use; 0 where it was told nothing."""
    products_alone = False


_here = _Here()


def use_threads(count: int, *, products_alone: bool = False) -> int:
    """Let torch operations of the calling thread use ``count`` CPU threads; other threads keep their number.

    Returns how many those use that start later.
    With ``products_alone`` only products of matrices do, where the library that makes them counts by itself as MKL
    does, and every other operation takes one. OpenMP puts threads to sleep at once where a process has more of them
    than the machine has cores, as beside a learner, and to wake one takes longer than a small operation.
    """
    import torch

    torch.get_num_threads()  # A thread takes over what new ones start with when it first asks, and would forget this.
    given = 0
    begun, changed = threading.Event(), threading.Event()

    def restore() -> None:
        nonlocal given
        given = torch.get_num_threads()  # What new threads start with.
        begun.set()
        changed.wait()
        torch.set_num_threads(given)

    helper = threading.Thread(target=restore)
    helper.start()
    begun.wait()
    torch.set_num_threads(count)
    changed.set()
    helper.join()
    _here.count, _here.products_alone = count, products_alone and count > 1 and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if _here.products_alone:
        _use_openmp_threads(1)
    return given


@contextmanager
def all_shared() -> Iterator[None]:
    """Within the block all operations use the calling thread's number of threads, where elsewhere products alone do:
    for work that is large enough."""
    if not _here.products_alone:
        yield
        return
    _use_openmp_threads(_here.count)
    try:
        yield
    finally:
        _use_openmp_threads(1)


def _use_openmp_threads(count: int) -> None:
    """Changes the calling thread's number alone, and not that of MKL, which torch's own function has set."""
    for library in _openmp():
        library.set_num_threads(count)


@cache
def _openmp() -> list[Any]:
    """The OpenMP libraries of the process, torch's among them. To look for them takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="openmp").lib_controllers)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within the block torch operations of the calling thread use ``count`` CPU threads, and then those of before."""
    import torch

    known, products_alone, found = _here.count, _here.products_alone, torch.get_num_threads()
    if found != (1 if products_alone else known):  # Somebody else has told it since.
        known, products_alone = found, False
    if (known, products_alone) == (count, False):
        yield
        return
    given = use_threads(count)
    try:
        yield
    finally:
        if known == given and not products_alone:
            torch.set_num_threads(known)  # Changes nothing for others, and takes no time.
            _here.count = known
        else:
            use_threads(known, products_alone=products_alone)


class ThreadLimit:
    """How many threads share the work of a model with so many ``parameters``: those of the thread that makes this."""

    def __init__(self, parameters: int) -> None:
        import torch

        self._parameters = parameters
        self._most = torch.get_num_threads()

    def of(self, tokens: int) -> AbstractContextManager[None]:
        """Return a block in which the calling thread uses as many threads as a pass of ``tokens`` is worth: one where
        it is too little work for two."""
        return threads(self._most if self._parameters * tokens >= SECOND_THREAD else 1)
