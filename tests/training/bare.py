"""Schedulers that start no processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from agentrl.errors import RunError

Result = TypeVar("Result")


class Bare:
    def run(self, train: Callable[[], Result]) -> Result:
        return train()


class Full:
    """One whose machines have no room: whoever wants a process waits, which the file ``waiting`` shows."""

    def __init__(self) -> None:
        self.hosts: _NoRoom | None = None

    def run(self, train: Callable[[], Result]) -> Result:
        self.hosts = _NoRoom()
        return train()


class _NoRoom:
    address = "127.0.0.1"
    elsewhere = False

    def start(self, specs: Any, *, patience: float, given_up: threading.Event, together: bool = True) -> Any:
        Path("waiting").touch()
        given_up.wait(patience)
        raise RunError("waited for room")
