"""Evaluating a folder of weights on its own, outside of a run."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agentrl.errors import ConfigError
from agentrl.rollout.episode import Episode
from agentrl.runs.reporter import Reporter
from agentrl.tasks.contract import TaskSet
from agentrl.training.checkpoints import read_checkpoint
from agentrl.training.evaluation import Evaluation, Evaluator
from agentrl.training.parts import Parts
from agentrl.training.serving import serve

__all__ = ["measure"]


async def measure(parts: Parts, reporter: Reporter) -> Evaluation:
    """Evaluate the weights in the model folder as the run that saved them did.

    Raises ``ConfigError`` where the config names no held-out tasks.
    """
    if parts.eval_tasks is None:
        raise ConfigError("tasks.eval is null: there is nothing to evaluate on", fix="set tasks.eval to a task set")

    reporter.stage("starting the inference engine")
    with _printed(reporter) as logs:
        return await _measured(parts, parts.eval_tasks, reporter, logs)


async def _measured(parts: Parts, tasks: TaskSet, reporter: Reporter, logs: Path) -> Evaluation:
    async def finished(episode: Episode) -> None:
        reporter.episode_finished(episode)

    version = read_checkpoint(parts.model_folder).version
    async with serve(
        parts, version, finished=finished, warn=reporter.warning, trains=False, logs=logs, say=reporter.note
    ) as serving:
        evaluator = Evaluator(serving.rollout, tasks, parts.config)
        reporter.stage("evaluating", episodes=evaluator.episodes)
        return await evaluator.run(version)


@contextlib.contextmanager
def _printed(reporter: Reporter) -> Iterator[Path]:
    """Where processes print to, since an evaluation has no run folder; kept where an agent's did, and of a failure."""
    folder = Path(tempfile.mkdtemp(prefix="agentrl-eval-"))
    kept = "*.log*"
    try:
        yield folder
        kept = "worker-*.log*"
    finally:
        if any(_holds_more_than_headers(log) for log in folder.rglob(kept)):
            reporter.note(f"what the processes printed is in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _holds_more_than_headers(log: Path) -> bool:
    with log.open("rb") as lines:
        return any(not line.startswith(b"--- ") for line in lines)
