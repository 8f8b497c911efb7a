"""The checkpointer of a run: saves the weights as they are, each version once, and removes what is not kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agentrl.config.training import TrainingSection
from agentrl.errors import RunError
from agentrl.learner.contract import Trainable
from agentrl.loops import finish
from agentrl.runs.reader import Run
from agentrl.training.checkpoints import Conversing, save_checkpoint, superseded
from agentrl.training.deadlines import finish_within
from agentrl.training.recorder import RunRecorder
from agentrl.training.stopwatch import Stopwatch

__all__ = ["Checkpointer"]


class Checkpointer:
    """Saves checkpoints of ``learner`` into the run's folder."""

    def __init__(
        self,
        learner: Trainable,
        settings: TrainingSection,
        recorder: RunRecorder,
        conversing: Conversing,
        elapsed: Callable[[], float],
        stopwatch: Stopwatch,
        source: Path | None = None,
    ) -> None:
        """``conversing`` is what a checkpoint keeps of how the model is talked to, ``elapsed`` tells the seconds of the
        run, and ``source`` is the checkpoint that a resumed run goes on from: it is saved already, and stays."""
        self._learner = learner
        self._settings = settings
        self._recorder = recorder
        self._conversing = conversing
        self._elapsed = elapsed
        self._stopwatch = stopwatch
        self._source = source
        self._version = -1 if source is None else learner.version
        self._run = Run(recorder.folder.path)
        self._lock = threading.Lock()
        self.newest = source
        """The newest checkpoint."""
        self.cursor = 0
        """The first position in the task order whose group no step has taken for good; later ones may be trained."""

    @contextmanager
    def weights_change(self) -> Iterator[None]:
        """A block in which the weights change, and are not written meanwhile; may be entered from any thread."""
        with self._lock:
            yield

    async def save(self, allowed: Callable[[], bool] = lambda: True) -> None:
        """Save the weights, unless they are saved already. Raises ``RunError`` where that fails.

        ``allowed`` is as of ``write``.
        """
        if self._version != self._learner.version:
            await finish(self._save(allowed))

    def write(self, allowed: Callable[[], bool] = lambda: True) -> Path | None:
        """Write the weights, unless they are written already, and return where; may be called from any thread.

        ``allowed`` is asked when no weights can change; where it says no, nothing is written, and ``None`` is returned.
        """
        timeout = self._settings.timeout
        if not self._lock.acquire(timeout=timeout):
            raise RunError(
                f"waited {timeout:g} s for the learner to be done with its weights", fix="raise training.timeout"
            )
        try:
            if not allowed():
                return None
            version = self._learner.version
            path = self._recorder.folder.checkpoint(version)
            if self._version != version:
                with self._recorder.folder.new_checkpoint(version) as folder:
                    self._recorder.sync()  # A run that is resumed from here keeps the metrics up to here.
                    save_checkpoint(
                        folder,
                        self._learner,
                        cursor=self.cursor,
                        conversing=self._conversing,
                        seconds=self._elapsed(),
                    )
                self._version, self.newest = version, path
            return path
        finally:
            self._lock.release()

    async def _save(self, allowed: Callable[[], bool]) -> None:
        version = self._learner.version
        if self._lock.locked():
            raise RunError(
                f"the weights of version {version} are not saved: a call that did not end in time holds them",
                fix="go on from the newest checkpoint",
            )
        self._recorder.reporter.activity_started("saving a checkpoint")
        with self._stopwatch.time("checkpoint"):
            what = f"checkpoint {version} to be written"
            path = await finish_within(self._settings.timeout, what, self.write, allowed)
            if path is None:
                return
            await finish_within(self._settings.timeout, "old checkpoints to be removed", self._prune)
        self._recorder.checkpoint(path)

    def _prune(self) -> None:
        self._recorder.folder.prune(superseded(self._run, self._settings.keep, [self.newest, self._source]))
