"""A stream of tensors from the process that has the weights to the workers of a server, one tensor at a time.

The sender listens, each worker connects and shows the token of this stream. A message is a line of JSON; nothing is
pickled, so that either side may have a torch of its own. A tensor is announced by its name, type and shape, and its
numbers come by one of three carriers:

``inline``
    behind the announcement, in the connection: for servers on other machines,
``shared``
    in pieces through a buffer of shared memory, for servers on this machine,
``cuda``
    in pieces through a buffer in the memory of the GPU that both are on, opened by a CUDA IPC handle.

A worker says that it has taken a piece before the next is written over it. No side holds more than the tensor that is
on its way. This module imports nothing of agentrl: a copy of it runs in the server.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import mmap
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import torch

__all__ = ["Broken", "Buffer", "Connection", "Listener", "SharedBuffer", "Stream", "Tensors", "as_bytes"]

_LONGEST_LINE = 1 << 16
_SILENT_S = 120.0
"""Seconds that either side waits for the other."""


class Broken(Exception):
    """A stream ended early, or what came is not what was announced; the message is a sentence."""


class Buffer(Protocol):
    """Memory that two processes see."""

    bytes: torch.Tensor
    """Of type uint8, with one dimension."""

    def handle(self) -> str:
        """Returns what the other side opens it by."""
        ...

    def close(self) -> None:
        """Let go of it. Safe to call twice."""
        ...


class SharedBuffer:
    """A ``Buffer`` in a file in memory, which has a name until every worker has opened it."""

    def __init__(self, size: int) -> None:
        """Raises ``OSError`` where there is no room."""
        folder = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()  # noqa: S108 - mkstemp is private
        file, self._path = tempfile.mkstemp(prefix="agentrl-stream-", dir=folder)
        try:
            os.ftruncate(file, size)
            self.bytes = torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8)
        finally:
            os.close(file)

    def handle(self) -> str:
        return self._path

    def close(self) -> None:
        """Remove its name. Those who have opened it may use it on."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def _open(carrier: str, handle: str, size: int) -> tuple[torch.Tensor, Any]:
    """The bytes of the sender's buffer, and what has to live as long as they are read."""
    if carrier == "shared":
        with open(handle, "rb+") as file:
            mapped = mmap.mmap(file.fileno(), size)
        return torch.frombuffer(mapped, dtype=torch.uint8), mapped
    try:
        from agentrl_vllm_cuda import CudaBuffer
    except ImportError:  # The plugin is installed beside the server, not copied to it.
        from agentrl_vllm.cuda import CudaBuffer
    opened = CudaBuffer.opened(handle, size)
    return opened.bytes, opened


class Connection:
    """One end of a connection: lines of JSON, and bytes behind them."""

    def __init__(self, own: socket.socket, seconds: float = _SILENT_S) -> None:
        self.peer = ""
        """Who is at the other end, in words."""
        own.settimeout(seconds)
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = own
        self._reader = own.makefile("rb", buffering=1 << 16)

    def tell(self, **message: Any) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """Returns the next message. Raises ``Broken`` where the connection ends, and ``OSError``."""
        line = self._reader.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise Broken("the connection was closed in the middle of the weights")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise Broken("what came was no message")
        return message

    def send(self, numbers: torch.Tensor) -> None:
        """Send the bytes of ``numbers``, of type uint8 and on the CPU."""
        self._socket.sendall(numbers.numpy().data)

    def fill(self, numbers: torch.Tensor) -> None:
        """Receive as many bytes as ``numbers`` has. Raises as ``hear``."""
        view, at = numbers.numpy().data, 0
        while at < len(view):
            got = self._reader.readinto(view[at:])  # type: ignore[attr-defined]
            if not got:
                raise Broken("the connection was closed in the middle of a tensor")
            at += got

    def close(self) -> None:
        """Close it. Safe to call twice."""
        self._reader.close()
        self._socket.close()


class Listener:
    """Waits for the workers that a stream goes to."""

    def __init__(self, address: str, token: str) -> None:
        """Listens on any free port of ``address``. Raises ``OSError`` where that cannot be had."""
        self._socket = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        self._socket.settimeout(0.25)
        self._token = token
        self.port: int = self._socket.getsockname()[1]

    def accept(self) -> Connection | None:
        """Returns a worker that has come, or ``None`` after a quarter of a second. Others are turned away."""
        try:
            connection = Connection(self._socket.accept()[0], 10.0)
        except TimeoutError:
            return None
        try:
            greeting = connection.hear()
            shown = str(greeting.get("token", ""))
            if hmac.compare_digest(shown.encode(), self._token.encode()):
                connection.peer = str(greeting.get("server", ""))
                connection._socket.settimeout(_SILENT_S)
                return connection
        except (OSError, ValueError, Broken):
            pass
        connection.close()
        return None

    def close(self) -> None:
        """Stop listening. Safe to call twice."""
        self._socket.close()


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the bytes of ``tensor``, which are its own where it is contiguous."""
    flat = tensor.detach().contiguous().view(-1)
    return flat.view(torch.uint8) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)


class Tensors:
    """Sends tensors to workers that have connected. A worker that fails is left out, and the others go on."""

    def __init__(
        self, workers: Sequence[Connection], carrier: str, buffer: Buffer | None = None, gpu: str = ""
    ) -> None:
        """``buffer`` is what ``shared`` and ``cuda`` go through, and ``gpu`` the GPU that it is on."""
        self._workers = list(workers)
        self._carrier = carrier
        self._buffer = buffer
        self.faults: dict[str, str] = {}
        """By ``peer``, why one was left out."""
        self.sent = 0
        """Bytes of the tensors that were sent."""
        shared = {} if buffer is None else {"handle": buffer.handle(), "size": buffer.bytes.numel()}
        self._each(lambda worker: worker.tell(carrier=carrier, gpu=gpu, **shared))
        self._each(lambda worker: worker.hear())
        if isinstance(buffer, SharedBuffer):
            buffer.close()

    @property
    def left(self) -> int:
        """How many workers take part still."""
        return len(self._workers)

    def send(self, name: str, tensor: torch.Tensor) -> None:
        """Send one tensor, and return when the memory of ``tensor`` may change."""
        numbers = as_bytes(tensor)
        self.sent += numbers.numel()
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._each(lambda worker: worker.tell(name=name, dtype=dtype, shape=list(tensor.shape)))
        if self._buffer is None:
            inline = numbers.cpu()
            self._each(lambda worker: worker.send(inline))
            return
        room = self._buffer.bytes
        for at in range(0, numbers.numel(), room.numel()):
            self._pass_on(numbers[at : at + room.numel()], room)

    def _pass_on(self, piece: torch.Tensor, room: torch.Tensor) -> None:
        count = piece.numel()
        room[:count].copy_(piece)
        if room.device.type == "cuda":
            torch.cuda.synchronize(room.device)
        self._each(lambda worker: worker.tell(piece=count))
        self._each(lambda worker: worker.hear())

    def end(self) -> None:
        """Tell that all were sent."""
        self._each(lambda worker: worker.tell(end=True))

    def close(self) -> None:
        """Close the connections. Safe to call twice."""
        for worker in self._workers:
            worker.close()

    def _each(self, do: Any) -> None:
        for worker in tuple(self._workers):
            try:
                do(worker)
            except (OSError, ValueError, Broken) as error:
                self.faults.setdefault(worker.peer, f"{type(error).__name__}: {error}")
                self._workers.remove(worker)
                worker.close()


class Stream:
    """What a worker receives: ``Stream.opened(…)`` first, which changes nothing, and then ``tensors()`` once."""

    def __init__(self, connection: Connection, buffer: tuple[torch.Tensor, Any] | None, device: Any) -> None:
        self._connection = connection
        self._buffer = buffer
        self._device = device

    @classmethod
    def opened(cls, address: str, port: int, token: str, server: str, device: Any, gpu: str = "") -> Self:
        """Connect to a sender, which knows this server by the name ``server``.

        ``device`` is where the worker computes, and ``gpu`` the name that this GPU has everywhere. Raises ``Broken``
        where the weights are on another GPU, and ``OSError`` where the sender is not there.
        """
        connection = Connection(socket.create_connection((address, port), 10.0))
        try:
            connection.tell(token=token, server=server)
            begun = connection.hear()
            carrier, own = str(begun["carrier"]), str(begun.get("gpu", ""))
            if own != gpu and carrier == "cuda":
                raise Broken(f"the weights are on GPU {own}, and the server is on {gpu}")
            buffer = None if "handle" not in begun else _open(carrier, str(begun["handle"]), int(begun["size"]))
            connection.tell(opened=True)
            return cls(connection, buffer, device if carrier == "cuda" else "cpu")
        except BaseException:
            connection.close()
            raise

    def tensors(self, shapes: Mapping[str, Sequence[int]] | None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each name and tensor as it comes, to the end. Each is the receiver's own.

        Raises ``Broken`` for a tensor whose shape is not that in ``shapes`` and for a stream that ends early, and
        ``OSError`` where the sender is gone.
        """
        connection = self._connection
        with contextlib.closing(connection):
            while "end" not in (told := connection.hear()):
                name, shape = str(told["name"]), [int(size) for size in told["shape"]]
                if shapes is not None and name in shapes and list(shapes[name]) != shape:
                    raise Broken(f"{name} comes as {shape} and should be {list(shapes[name])}")
                tensor = torch.empty(shape, dtype=getattr(torch, str(told["dtype"])), device=self._device)
                numbers = as_bytes(tensor)
                if self._buffer is None:
                    connection.fill(numbers)
                else:
                    _take_pieces(connection, self._buffer[0], numbers)
                yield name, tensor


def _take_pieces(connection: Connection, buffer: torch.Tensor, numbers: torch.Tensor) -> None:
    at = 0
    while at < numbers.numel():
        count = int(connection.hear()["piece"])
        numbers[at : at + count].copy_(buffer[:count])
        if buffer.device.type == "cuda":
            torch.cuda.synchronize(buffer.device)
        connection.tell(taken=count)
        at += count
