"""Evaluating a folder of weights, or an endpoint, outside of a run."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from agentrl.errors import ConfigError
from agentrl.rollout.episode import Episode
from agentrl.rollout.tally import Tally
from agentrl.runs.plain import FAILURES
from agentrl.runs.reporter import Reporter
from agentrl.tasks.contract import TaskSet
from agentrl.training.checkpoints import read_checkpoint
from agentrl.training.endpoint import serve_endpoint
from agentrl.training.evaluation import Evaluation, Evaluator
from agentrl.training.parts import EpisodeParts, Parts
from agentrl.training.serving import serve

__all__ = ["measure", "measure_endpoint"]

_MANY_CUT = 0.25
"""Which share of completions that end too soon makes an evaluation one of the limit rather than the model."""


async def measure(parts: Parts, reporter: Reporter) -> Evaluation:
    """Evaluate the weights in the model folder as the run that saved them did.

    Raises ``ConfigError`` where the config names no held-out tasks.
    """
    tasks = _held_out(parts)
    version = read_checkpoint(parts.model_folder).version
    reporter.stage("starting the inference engine")
    tally = Tally()
    with _printed(reporter) as logs, _told(tally, reporter):
        told = partial(_finished, reporter, tally)
        warn, say = reporter.warning, reporter.note
        async with serve(parts, version, finished=told, warn=warn, say=say, trains=False, logs=logs) as serving:
            return await _measured(Evaluator(serving.rollout, tasks, parts.config), version, reporter)


async def measure_endpoint(parts: EpisodeParts, reporter: Reporter) -> Evaluation:
    """Evaluate the model of an endpoint; raises as ``measure`` does."""
    tasks, config = _held_out(parts), parts.config
    ends: Counter[str] = Counter()
    tally = Tally()

    async def finished(episode: Episode) -> None:
        ends.update(call.finish_reason for call in episode.calls)
        await _finished(reporter, tally, episode)

    reporter.stage("asking the endpoint")
    with _printed(reporter) as logs, _told(tally, reporter):
        async with serve_endpoint(parts, finished=finished, warn=reporter.warning, logs=logs) as endpoint:
            if not endpoint.greedy:
                reporter.warning(f"model {config.model.name!r} does not take temperature 0: no greedy reading")
            evaluator = Evaluator(endpoint.rollout, tasks, config, greedy=endpoint.greedy)
            measured = await _measured(evaluator, 0, reporter)
    if ends["length"] > _MANY_CUT * ends.total():
        cut = f"{ends['length']} of {ends.total()} completions were cut at their limit of tokens"
        reporter.warning(
            f"{cut} (raise rollout.max_tokens={config.rollout.max_tokens}; models may think before they answer)"
        )
    return measured


def _held_out(parts: EpisodeParts) -> TaskSet:
    if parts.eval_tasks is None:
        raise ConfigError("tasks.eval is null: there is nothing to evaluate on", fix="set tasks.eval to a task set")
    return parts.eval_tasks


async def _finished(reporter: Reporter, tally: Tally, episode: Episode) -> None:
    tally.add(episode)
    reporter.episode_finished(episode)


@contextlib.contextmanager
def _told(tally: Tally, reporter: Reporter) -> Iterator[None]:
    """Say at the end what did not go as it should, each with its commonest cause."""
    yield
    for line in tally.lines(FAILURES):
        reporter.warning(line)
    for line in tally.lines(kind for kind in tally.kinds if kind not in FAILURES):
        reporter.note(line)


async def _measured(evaluator: Evaluator, version: int, reporter: Reporter) -> Evaluation:
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
