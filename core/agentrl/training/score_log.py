"""What an endpoint said of the tokens of each step, so that a step that is repeated is repeated as it was.

A model beside the learner says the same again. An endpoint need not: it may have failed where it answers now, or
answer in another batch with other rounding. So what it said is written before the step is made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from agentrl.errors import RunError, cannot_write
from agentrl.inference.model_folder import saved_checkpoints
from agentrl.rollout.contract import Failure
from agentrl.runs.folder import write_atomically
from agentrl.training.teachers import Asked

__all__ = ["ScoreLog"]

_FOLDER = "teacher"


class ScoreLog:
    """The files ``teacher/step-000012.json`` of a run, one for each step that may be repeated."""

    def __init__(self, run: Path, keep: int) -> None:
        """``keep`` is how many checkpoints the run keeps, from the oldest of which it may be resumed."""
        self._run = run
        self._keep = keep

    def read(self, step: int) -> Asked:
        """What was said at ``step``; nothing where nobody was asked yet. Raises ``RunError`` for a damaged file."""
        path = self._path(step)
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            failures = {digest: Failure(**each) for digest, each in held["failures"].items()}
            return Asked(held["logprobs"], failures)
        except FileNotFoundError:
            return Asked({}, {})
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path}, what the teacher said of step {step}, cannot be read: {error}",
                fix="restore it from a copy, or delete it to ask the teacher again",
            ) from error

    def write(self, step: int, logprobs: Mapping[str, Sequence[float]], failures: Mapping[str, Failure]) -> None:
        """Write what was said at ``step``, and forget the steps that no checkpoint leads to any more."""
        path = self._path(step)
        told = {digest: {name: asdict(each)[name] for name in _KEPT} for digest, each in failures.items()}
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, json.dumps({"logprobs": dict(logprobs), "failures": told}))
            self._forget()
        except OSError as error:
            raise cannot_write(path, error) from error

    def _forget(self) -> None:
        oldest = sorted(saved_checkpoints(self._run))[-self._keep :][:1]
        for path in (self._run / _FOLDER).glob("step-*.json"):
            if oldest and int(path.stem.removeprefix("step-")) <= oldest[0]:
                os.unlink(path)

    def _path(self, step: int) -> Path:
        return self._run / _FOLDER / f"step-{step:06}.json"


_KEPT = ("side", "reason", "fingerprint")
"""What is kept of a failure, as the episode store does."""
