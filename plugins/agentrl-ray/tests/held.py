"""Objects that hosts of tests hold."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import numpy as np

from agentrl import ConfigError


class Thing:
    """Adds, waits, fails and dies."""

    def __init__(self, folder: str = "", breaks: bool = False) -> None:
        print("made", flush=True)
        self.folder = folder
        self.sum = 0
        if breaks:
            raise ConfigError("it cannot be made", fix="make another")

    def add(self, number: int) -> int:
        self.sum += number
        return self.sum

    def raised(self, array: np.ndarray) -> np.ndarray:
        array += 1  # Arrays that Ray carries are read-only; those of a host are its own.
        return array

    def where(self) -> tuple[int, str, str]:
        return os.getpid(), os.getcwd(), os.environ.get("OF_A_TEST", "")

    def told(self, line: str) -> None:
        print(line, flush=True)

    def refused(self) -> None:
        raise ConfigError("it is refused", fix="ask otherwise")

    def failed(self) -> None:
        raise ValueError("a number is wrong")

    def die(self, line: str) -> None:
        print(line, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def busy(self, seconds: float) -> str:
        time.sleep(seconds)
        return threading.current_thread().name

    async def wait(self, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.sum = -1
            raise
        return "waited"

    def close(self) -> None:
        if not self.folder:
            return
        with open(os.path.join(self.folder, f"closed.{os.getpid()}"), "w"):
            pass
