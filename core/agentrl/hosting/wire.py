"""The wire between a process and a host that it has started: pickled values over a pair of sockets that only they have.

A frame is its head, the sizes of its buffers, and the pickle. Large arrays are no part of the pickle: the sender
writes them into a file without a name, in memory where the system has such files, whose descriptor goes with the head.
The receiver's arrays are views of that file, so each number is copied once, and what nobody reads any more is gone.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import socket
import struct
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

__all__ = ["Wire"]

_HEAD = struct.Struct("!QQ")
"""Bytes of the pickle, and how many buffers lie in the file that comes with the head."""
_SIZE = struct.Struct("!Q")
SHARED = 1 << 16
"""Bytes of arrays from which on they are written into a file: for less, making one takes longer than copying."""
_ALIGNED = 64


class Wire:
    """One end. ``send`` may be called from any thread, ``receive`` by one at a time."""

    def __init__(self, end: socket.socket) -> None:
        """Takes ``end``, a connected stream socket of this machine, over."""
        self._socket = end
        self._lock = threading.Lock()

    def send(self, value: object) -> None:
        """Send ``value``. Raises what pickling it raises, and ``OSError`` where the other end is gone."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        views = [buffer.raw() for buffer in buffers]
        if sum(view.nbytes for view in views) < SHARED:
            pickled, views = pickle.dumps(value, protocol=5) if views else pickled, []
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(_Written(views)).fd] if views else []
            head = _HEAD.pack(len(pickled), len(views))
            sizes = b"".join(_SIZE.pack(view.nbytes) for view in views)
            with self._lock:
                if socket.send_fds(self._socket, [head], files) < len(head):
                    raise OSError("the head of a message was sent in part")
                self._socket.sendall(sizes)
                self._socket.sendall(pickled)

    def receive(self) -> Any:
        """Wait for a value and return it. Raises ``EOFError`` where the other end is gone."""
        fds: list[int] = []
        try:
            pickled, count = _HEAD.unpack(self._read(_HEAD.size, fds))
            sizes = [_SIZE.unpack(self._read(_SIZE.size))[0] for _ in range(count)]
            data = self._read(pickled)
            return pickle.loads(data, buffers=_mapped(fds[0], sizes) if sizes else ())  # noqa: S301 - Ours alone.
        except OSError as error:
            raise EOFError(str(error)) from error
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        """Close it; whoever waits at the other end, or in ``receive``, is told. Safe to call twice."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, size: int, fds: list[int] | None = None) -> bytearray:
        """The next ``size`` bytes; descriptors that come with them are added to ``fds``, where it is given."""
        data = bytearray(size)
        read = 0
        while read < size:
            if fds is None:
                got = self._socket.recv_into(memoryview(data)[read:])
            else:
                chunk, found, _, _ = socket.recv_fds(self._socket, size - read, 1)
                data[read : read + len(chunk)] = chunk
                fds += found
                got = len(chunk)
            if not got:
                raise EOFError("the other end of the connection is closed")
            read += got
        return data


class _Written:
    """A file without a name that holds buffers, one after the other; open while the block lasts."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self.fd = _unnamed()
        try:
            place = 0
            for view in views:
                _write(self.fd, view.cast("B"), place)
                place += _room(view.nbytes)
            os.ftruncate(self.fd, place)
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _unnamed() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("agentrl-arrays")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(fd: int, view: memoryview, place: int) -> None:
    written = 0
    while written < view.nbytes:
        written += os.pwrite(fd, view[written:], place + written)


def _room(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _mapped(fd: int, sizes: Sequence[int]) -> list[memoryview]:
    """Views of the buffers of such sizes in the file ``fd``, which live as long as somebody uses them."""
    whole = memoryview(mmap.mmap(fd, sum(map(_room, sizes)) or 1))
    views, place = [], 0
    for size in sizes:
        views.append(whole[place : place + size])
        place += _room(size)
    return views
