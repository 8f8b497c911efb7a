"""Turns: a learner and an engine that share a device, each of which gives the other its memory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from agentrl.config.models import Config
from agentrl.errors import ConfigError
from agentrl.inference.contract import Sleeper
from agentrl.learner.contract import Trainable
from agentrl.loops import finish_in_thread
from agentrl.training.deadlines import within
from agentrl.training.stopwatch import Stopwatch

__all__ = ["Turns", "check_turns"]


def check_turns(config: Config) -> None:
    """Raise ``ConfigError`` where ``config``, whose engine is to sleep during steps, would sample meanwhile."""
    name, rollout = config.inference.backend.name, config.rollout
    why = f"inference.backend={name} sleeps while the learner steps, since both are on one device"
    if config.is_online:
        raise ConfigError(
            f"{why}, and sessions are served at any time", fix="give the engine a device of its own for training online"
        )
    if rollout.max_staleness:
        raise ConfigError(
            f"{why}, and with rollout.max_staleness={rollout.max_staleness} episodes run during steps",
            fix="set rollout.max_staleness=0, or give the engine a device of its own",
            key="rollout.max_staleness",
        )
    if config.evaluation.overlap:
        raise ConfigError(
            f"{why}, and with evaluation.overlap=true an evaluation runs beside them",
            fix="leave it out, or give the engine a device of its own",
            key="evaluation.overlap",
        )


class Turns:
    """Has an engine sleep while the learner steps, and the learner's states aside else."""

    def __init__(self, learner: Trainable, engine: Sleeper, timeout: float, stopwatch: Stopwatch) -> None:
        """``timeout`` is how many seconds the engine has for falling asleep, and for waking.

        What the two changes of turn take is added to ``stopwatch``, as ``sleep`` and ``wake``.
        """
        self._learner = learner
        self._engine = engine
        self._timeout = timeout
        self._stopwatch = stopwatch

    @contextlib.asynccontextmanager
    async def learning(self) -> AsyncIterator[None]:
        """Within the block the device is the learner's; after it, unless it raises, the engine's.

        Raises ``BackendError`` where the engine does not fall asleep or wake in time.
        """
        with self._stopwatch.time("sleep"):
            await within(self._timeout, "the inference engine to fall asleep", self._engine.sleep())
            await finish_in_thread(self._learner.bring_back)
        yield
        with self._stopwatch.time("wake"):
            await finish_in_thread(self._learner.set_aside)
            await within(self._timeout, "the inference engine to wake", self._engine.wake())
