"""The worker's end of the socket pair: whole messages, from any thread."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

from agentrl.worker.protocol import LONGEST, Message, decode

__all__ = ["Channel"]


class Channel:
    """Messages over the connected stream socket that is descriptor ``fd``.

    No child process has a part in it: a program that the agent starts does not inherit the descriptor, and a
    copy of this process made by ``os.fork`` closes it at once and sends nothing.

    Raises ``OSError`` where ``fd`` is no socket.
    """

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.getpeername()  # Any descriptor makes a socket object; only a connected socket has a peer.
        self._socket.set_inheritable(False)
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._close_in_child)

    def messages(self) -> Iterator[Message]:
        """What the rollout says, until it is gone. Raises ``ValueError`` for what is no message."""
        # It is "reset" where the rollout has left something unread.
        with self._socket.makefile("rb") as lines, contextlib.suppress(ConnectionError):
            while line := self._line(lines.readline(LONGEST + 1)):
                yield decode(line)

    def _line(self, line: bytes) -> bytes:
        if len(line) > LONGEST:
            raise ValueError(f"a message of more than {LONGEST} bytes")
        return line if line.endswith(b"\n") else b""

    def send(self, line: bytes) -> None:
        """Send an encoded message; into the void where nobody listens any more."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(line)

    def _close_in_child(self) -> None:
        # Not with close(): the file object that reads, in a thread that the child does not have, defers that.
        if self._socket.fileno() >= 0:
            os.close(self._socket.detach())
        self._lock = threading.Lock()
