"""Objects for hosts to hold, and a process that starts hosts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from agentrl.errors import ConfigError, GatewayError


class Kept:
    """Keeps what it is told."""

    def __init__(self, *, begins: str = "", fails: bool = False, sleeps: float = 0.0, closing: str = "") -> None:
        print("a host prints")
        time.sleep(sleeps)
        if fails:
            raise ConfigError("there is nothing to keep", fix="name something", key="training.processes")
        self.told = [begins]
        self._closing = closing

    def tell(self, text: str, wait: float = 0.0) -> list[str]:
        time.sleep(wait)
        self.told.append(text)
        return self.told

    def process(self) -> int:
        return os.getpid()

    def thread_count(self) -> tuple[str, str]:
        return os.environ.get("OMP_NUM_THREADS", ""), os.environ.get("MKL_NUM_THREADS", "")

    def doubled(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array + array

    def raises(self, kind: str) -> None:
        if kind == "ours":
            raise GatewayError("it is not there", status=404, code="not_found", fix="name another")
        if kind == "config":
            raise ConfigError("training.steps=-1 is below 0", key="training.steps")
        raise LookupError("no such thing")

    def unpicklable(self) -> object:
        return lambda: None

    def ends(self, how: str) -> None:
        print("its last words", file=sys.stderr)
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(60)

    def starts_child(self) -> int:
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    def sleeps(self, seconds: float) -> None:
        time.sleep(seconds)

    async def waits(self, seconds: float, text: str) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.told.append(f"{text} was cancelled")
            raise
        return text

    def close(self) -> None:
        if self._closing:
            with open(self._closing, "w") as file:
                file.write("closed")


def zeros(size: int) -> npt.NDArray[np.float64]:
    return np.zeros(size)
