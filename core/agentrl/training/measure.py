"""Evaluating a folder of weights, or an endpoint, outside of a run."""

from __future__ import annotations

from collections import Counter

from agentrl.errors import ConfigError
from agentrl.reporting.reporter import Reporter
from agentrl.rollout.contract import Episode
from agentrl.tasks.contract import TaskSet
from agentrl.training.checkpoints import read_checkpoint
from agentrl.training.endpoint import serve_endpoint
from agentrl.training.evaluation import Evaluation, Evaluator
from agentrl.training.evaluation_folder import EvaluationFolder, evaluation_folder
from agentrl.training.parts import EpisodeParts, Parts
from agentrl.training.serving import serve

__all__ = ["measure", "measure_endpoint"]

_MANY_CUT = 0.25
"""Which share of completions that end too soon makes an evaluation one of the limit rather than the model."""


async def measure(parts: Parts, reporter: Reporter) -> Evaluation:
    """Evaluate the weights in the model folder as the run that saved them did; the episodes stay in a run folder.

    Raises ``ConfigError`` where the config names no held-out tasks.
    """
    tasks = _held_out(parts)
    version = read_checkpoint(parts.model_folder).version
    with evaluation_folder(parts.config, parts.model_folder, reporter) as keeping:
        told, logs = keeping.reporter, keeping.folder.logs
        told.stage("starting the inference engine")
        async with serve(
            parts, version, finished=keeping.episode, warn=told.warning, say=told.note, trains=False, logs=logs
        ) as serving:
            return await _measured(Evaluator(serving.rollout, tasks, parts.config), version, keeping)


async def measure_endpoint(parts: EpisodeParts, reporter: Reporter) -> Evaluation:
    """Evaluate the model of an endpoint; keeps and raises as ``measure`` does."""
    tasks, config = _held_out(parts), parts.config
    ends: Counter[str] = Counter()
    with evaluation_folder(config, None, reporter) as keeping:
        told, logs = keeping.reporter, keeping.folder.logs

        async def finished(episode: Episode) -> None:
            ends.update(call.finish_reason for call in episode.calls)
            await keeping.episode(episode)

        told.stage("asking the endpoint")
        async with serve_endpoint(parts, finished=finished, warn=told.warning, logs=logs) as endpoint:
            if not endpoint.greedy:
                told.warning(f"model {config.model.name!r} does not take temperature 0: no greedy reading")
            evaluator = Evaluator(endpoint.rollout, tasks, config, greedy=endpoint.greedy)
            measured = await _measured(evaluator, 0, keeping)
        if ends["length"] > _MANY_CUT * ends.total():
            cut = f"{ends['length']} of {ends.total()} completions were cut at their limit of tokens"
            told.warning(
                f"{cut} (raise rollout.max_tokens={config.rollout.max_tokens}; models may think before they answer)"
            )
    return measured


def _held_out(parts: EpisodeParts) -> TaskSet:
    if parts.eval_tasks is None:
        raise ConfigError("tasks.eval is null: there is nothing to evaluate on", fix="set tasks.eval to a task set")
    return parts.eval_tasks


async def _measured(evaluator: Evaluator, version: int, keeping: EvaluationFolder) -> Evaluation:
    keeping.reporter.stage("evaluating", episodes=evaluator.episodes)
    return keeping.conclude(await evaluator.run(version))
