"""The hosts of a run, and what becomes of the run where one of them is lost: it goes on by itself, or ends.

Whether starting again can help is judged by how far the run has come: one that loses a process before its model was
loaded, or twice in the same step, would lose it for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agentrl.config.models import Config
from agentrl.errors import HostLostError
from agentrl.hosting.contract import Hosts
from agentrl.runs.reader import Run

__all__ = ["Hosting"]


@dataclass
class Hosting:
    """The hosts of one call of ``Trainer.train``."""

    hosts: Hosts
    most: int
    """How often the run may go on by itself."""
    restarts: int = 0
    """How often it has."""
    run: Path | None = None
    """The folder of the run, once its model is loaded."""
    _reached: int = -1
    """The step that the run had made when it last lost a process."""
    _judged: tuple[BaseException, str | None] | None = None

    def holds_learner(self, config: Config) -> bool:
        """Whether the model is in processes of its own, and not in this one."""
        return config.training.processes > 1 or self.hosts.elsewhere

    def goes_on(self, error: BaseException) -> bool:
        """Whether the run goes on by itself after ``error``, which has ended it."""
        return self._why_not(error) == ""

    def advice(self, error: BaseException) -> str | None:
        """Why it does not go on by itself, as a sentence; ``None`` where there is nothing to say."""
        return self._why_not(error) or None

    def restarted(self) -> str:
        """Count a restart, and say which one it is."""
        self.restarts += 1
        return f"restart {self.restarts} of training.restarts={self.most}"

    def _why_not(self, error: BaseException) -> str | None:
        if self._judged is None or self._judged[0] is not error:
            self._judged = error, self._judge(error)
        return self._judged[1]

    def _judge(self, error: BaseException) -> str | None:
        """``None`` where ``error`` is no lost process, or none is to be replaced; empty where the run goes on."""
        if not isinstance(error, HostLostError) or not self.most:
            return None
        if self.run is None:
            return "the run does not go on by itself: it had not loaded its model"
        if self.restarts >= self.most:
            return f"the run has gone on by itself training.restarts={self.most} times already"
        reached = max((line.step for line in Run(self.run).metrics()), default=0)
        if reached <= self._reached:
            return f"the run does not go on by itself: it has lost a process twice in step {reached + 1}"
        self._reached = reached
        return ""
