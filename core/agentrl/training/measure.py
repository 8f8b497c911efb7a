"""Evaluating a folder of weights on its own, outside of a run."""

from __future__ import annotations

from agentrl.errors import ConfigError
from agentrl.rollout.episode import Episode
from agentrl.runs.reporter import Reporter
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

    async def finished(episode: Episode) -> None:
        reporter.episode_finished(episode)

    reporter.stage("starting the inference engine")
    version = read_checkpoint(parts.model_folder).version
    async with serve(parts, version, finished=finished, warn=reporter.warning, trains=False) as serving:
        evaluator = Evaluator(serving.rollout, parts.eval_tasks, parts.config)
        reporter.stage("evaluating", episodes=evaluator.episodes)
        return await evaluator.run(version)
