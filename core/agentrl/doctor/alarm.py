"""The last deadline: for code that neither ends nor lets anybody else run."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self

from agentrl.agents.exceptions import code_location
from agentrl.loops import TICK_S, AwakeClock

__all__ = ["Alarm"]


class Alarm:
    """Calls ``expired`` from a thread of its own once the time that ``set`` gave is over.

    It is given the place in the code at which the thread that made the alarm was found. What runs there cannot be
    ended from outside: whoever is called should leave the process.
    """

    def __init__(self, expired: Callable[[str], None]) -> None:
        self._expired = expired
        self._clock = AwakeClock()
        self._watched = threading.get_ident()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._wait, name="agentrl-alarm", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(timeout=5)

    def set(self, seconds: float) -> None:
        """Begin to wait anew."""
        with self._changed:
            self._deadline = self._clock.time() + seconds
            self._changed.notify()

    def _wait(self) -> None:
        self._clock.start()
        with self._changed:
            while not self._stopped:
                if self._deadline is not None and self._clock.time() >= self._deadline:
                    break
                self._changed.wait(TICK_S)
                self._clock.tick()
            if self._stopped:
                return
        self._expired(self._place())

    def _place(self) -> str:
        frame = sys._current_frames().get(self._watched)
        return "" if frame is None else code_location(traceback.extract_stack(frame))
