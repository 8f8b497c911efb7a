"""Memory that two processes of this machine have: what one has written the other reads, without a byte in a pickle.

::

    memory = SharedMemory()                               # where the tensors are wanted
    places = write(tensors, memory.address)               # in another process, which has been told the address
    for name, tensor in memory.tensors(places): …         # the memory itself

The writer copies each tensor once, and the reader's tensors are the memory. On Linux it belongs to no folder, so that
the size of ``/dev/shm`` does not limit it, and a process that is killed leaves nothing behind; elsewhere it is one of
the temporary files.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple, Self

from agentrl.errors import BackendError

if TYPE_CHECKING:
    from types import TracebackType

    import torch

__all__ = ["MemoryAddress", "Place", "SharedMemory", "write"]


class MemoryAddress(NamedTuple):
    """By which another process of the same user on this machine finds the memory."""

    path: str
    name: str
    """What the file at ``path`` is called, which shows that it is not another one."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies."""

    name: str
    dtype: str
    """By torch's name without the prefix."""
    shape: tuple[int, ...]
    start: int
    """The byte at which it begins, a multiple of the machine's page size."""
    size: int
    """How many bytes it has."""

    @property
    def end(self) -> int:
        """From where on the next one may be written."""
        return self.start + self.size


def write(tensors: Iterable[tuple[str, torch.Tensor]], address: MemoryAddress, start: int = 0) -> list[Place]:
    """Copy ``tensors``, one at a time, into the memory at ``address``, from the byte ``start`` on.

    Returns where they lie. Raises ``BackendError`` where the memory is not to be found, or has no room.
    """
    import torch

    places: list[Place] = []
    try:
        file = os.open(address.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if address.name not in (os.readlink(f"/proc/self/fd/{file}") if _IS_LINUX else address.path):
                raise OSError(f"{address.path} is another file")
            for name, tensor in tensors:
                start = -(-start // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                if flat.numel():
                    _write_all(file, flat.view(torch.uint8).numpy().data, start)
                places.append(
                    Place(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), start, flat.nbytes)
                )
                start += flat.nbytes
        finally:
            os.close(file)
    except OSError as error:
        raise BackendError(
            f"tensors cannot be written into memory that another process has given ({error.strerror or error})",
            fix="free memory, or have learner and engine in one process: training.processes=1",
        ) from error
    return places


_IS_LINUX = sys.platform == "linux"


def _write_all(file: int, data: memoryview, start: int) -> None:
    while data:
        written = os.pwrite(file, data, start)
        data, start = data[written:], start + written


class SharedMemory:
    """Memory into which other processes of this machine write tensors."""

    def __init__(self) -> None:
        """Raises ``OSError`` where there can be none."""
        name = f"agentrl-{secrets.token_hex(8)}"
        self._temporary: str | None = None
        if _IS_LINUX:
            self._file = os.memfd_create(name, os.MFD_CLOEXEC)
            path = f"/proc/{os.getpid()}/fd/{self._file}"
        else:
            self._file, path = tempfile.mkstemp(prefix=name)
            self._temporary = path
        self.address = MemoryAddress(path, name)
        """Where others find it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def tensors(self, places: Sequence[Place]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and tensor of what has been written to ``places``: the memory itself, which stays for as long as
        somebody has the tensor."""
        import torch

        for place in places:
            dtype: torch.dtype = getattr(torch, place.dtype)
            if not place.size:
                yield place.name, torch.empty(place.shape, dtype=dtype)
                continue
            mapped = mmap.mmap(self._file, place.size, offset=place.start)
            yield place.name, torch.frombuffer(mapped, dtype=dtype, count=prod(place.shape)).view(place.shape)

    def close(self) -> None:
        """Let others write no more. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)
            self._temporary = None
