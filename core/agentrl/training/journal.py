"""The journal of a run: everything that it tells the outside goes through here, in one order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from agentrl.config.models import Config
from agentrl.plugins import Plugins
from agentrl.reporting.contract import RunInfo
from agentrl.reporting.reporter import Plan, Reporter
from agentrl.reporting.trackers import Trackers
from agentrl.rollout.contract import Episode, Group
from agentrl.rollout.tally import Tally
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.store import EpisodeStore
from agentrl.runs.summary import Summary
from agentrl.training.evaluation import Evaluation

__all__ = ["Journal"]


class Journal:
    """Tells the episode store, the metrics file, the trackers, the plugins' hooks and the reporter."""

    def __init__(
        self,
        folder: RunFolder,
        store: EpisodeStore,
        metrics: MetricsLog,
        trackers: Trackers,
        plugins: Plugins,
        reporter: Reporter,
    ) -> None:
        self.folder = folder
        self.reporter = reporter
        self.episodes = 0
        """Episodes finished so far."""
        self.tokens = 0
        """Tokens sampled in them."""
        self.tally = Tally()
        """What did not go as it should in them."""
        self._store = store
        self._metrics = metrics
        self._trackers = trackers
        self._hook = plugins.hook
        self._run: RunInfo | None = None

    def start(self, config: Config) -> None:
        """Tell that training is about to begin. Raises what a tracker or a plugin refuses the run with."""
        run = RunInfo(self.folder.name, self.folder.path, config.agent.name, config.model.name)
        self._trackers.start(self.folder, config)
        self._hook.agentrl_run_started(run=run)
        self._run = run
        per_step = config.rollout.tasks_per_step * config.rollout.group_size
        tasks, held_out, reward = config.tasks.train, config.tasks.eval, config.reward
        self.reporter.run_started(
            Plan(
                run.folder,
                run.agent,
                run.model,
                config.training.steps,
                per_step,
                tasks=tasks.name,
                held_out=None if held_out is None else held_out.name,
                reward=None if reward is None else reward.name,
            )
        )

    async def episode(self, episode: Episode) -> None:
        """Make a finished episode durable, then tell of it."""
        await self._store.commit([episode])
        self.episodes += 1
        self.tokens += sum(call.completion_tokens for call in episode.calls)
        self.tally.add(episode)
        self._hook.agentrl_episode_finished(episode=episode)
        self.reporter.episode_finished(episode)

    def batch(self, groups: Sequence[Group]) -> None:
        """Tell of a step's groups before they train."""
        self._hook.agentrl_batch_ready(batch=groups)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell of an optimiser step."""
        self._log(step, metrics)
        self._hook.agentrl_step_finished(step=step, metrics=metrics)
        self.reporter.step_finished(step, metrics)

    def evaluation(self, evaluation: Evaluation) -> None:
        """Tell of an evaluation."""
        self._log(evaluation.step, evaluation.metrics())
        self.reporter.evaluation_finished(evaluation.step, evaluation.metrics())

    def checkpoint(self, path: Path) -> None:
        """Tell of a checkpoint that is complete."""
        self._hook.agentrl_checkpoint_saved(path=path)

    def finish(self, summary: Summary) -> None:
        """Write the summary and tell of the end. Raises ``RunError`` where it cannot be written."""
        self._trackers.finish(summary.outcome)
        self.folder.write_summary(summary)
        if self._run is not None:
            self._hook.agentrl_run_finished(run=self._run, outcome=summary.outcome)
        self.reporter.run_finished(summary)

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        if failed := len(self._trackers.failed):
            metrics = {**metrics, "trackers/failed": failed}
        self._metrics.append(step, metrics)
        self._trackers.log(step, metrics)
