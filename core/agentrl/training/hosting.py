"""The hosts of a run, and what becomes of the run where one of them is lost: it goes on by itself, or ends.

Whether starting again can help is judged by how far the run has come: one that loses a process before its model was
loaded for the first time, or twice in the same step, would lose it for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """The folder of the run, once its model has been loaded."""
    _is_loaded: bool = False
    """Whether its model is loaded since it was started, or started again."""
    _lost_in: set[int] = field(default_factory=set)
    """The steps in which the run has lost a process."""
    _judged: tuple[BaseException, str | None] | None = None

    def holds_learner(self, config: Config) -> bool:
        """Whether the model is in processes of its own, and not in this one."""
        return config.training.processes > 1 or self.hosts.elsewhere

    def loaded(self, run: Path) -> None:
        """The model of the run in this folder is loaded."""
        self.run, self._is_loaded = run, True

    def goes_on(self, error: BaseException) -> bool:
        """Whether the run goes on by itself after ``error``, which has ended it."""
        return self._why_not(error) == ""

    def advice(self, error: BaseException) -> str | None:
        """Why it does not go on by itself, as a sentence; ``None`` where there is nothing to say."""
        return self._why_not(error) or None

    def restarted(self) -> str:
        """Count a restart, and say which one it is."""
        self.restarts += 1
        self._is_loaded = False
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
        if not self._is_loaded:  # Such as by a node that is dying, and not known to be yet.
            return ""
        step = 1 + max((line.step for line in Run(self.run).metrics()), default=0)
        if step in self._lost_in:
            return f"the run does not go on by itself: it has lost a process twice in step {step}"
        self._lost_in.add(step)
        return ""
