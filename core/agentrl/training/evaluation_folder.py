"""What an evaluation leaves behind: a run folder with its episodes, whatever ended it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentrl.config.models import Config
from agentrl.errors import AgentRLError
from agentrl.reporting.log import RunLog
from agentrl.reporting.plain import FAILURES
from agentrl.reporting.reporter import Reporter
from agentrl.reporting.reporters import Reporters
from agentrl.rollout.contract import Episode
from agentrl.rollout.tally import Tally
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.store import EpisodeStore
from agentrl.runs.summary import Summary
from agentrl.training.evaluation import Evaluation

__all__ = ["EvaluationFolder", "evaluation_folder"]

_LOG = "run.log"


@dataclass
class EvaluationFolder:
    """Where the episodes of an evaluation go, and who is told of them."""

    folder: RunFolder
    reporter: Reporter
    store: EpisodeStore
    metrics: MetricsLog
    tally: Tally = field(default_factory=Tally)
    tokens: int = 0
    measured: Evaluation | None = None

    async def episode(self, episode: Episode) -> None:
        """Make a finished episode durable, then tell of it."""
        await self.store.commit([episode])
        self.tokens += sum(call.completion_tokens for call in episode.calls)
        self.tally.add(episode)
        self.reporter.episode_finished(episode)

    def conclude(self, evaluation: Evaluation) -> Evaluation:
        """Write down what was measured, and say what did not go as it should; returns it with its folder."""
        self.measured = replace(evaluation, folder=self.folder.path)
        self.metrics.append(evaluation.step, evaluation.metrics())
        for line in self.tally.lines(FAILURES):
            self.reporter.warning(line)
        for line in self.tally.lines(kind for kind in self.tally.kinds if kind not in FAILURES):
            self.reporter.note(line)
        return self.measured

    def summary(self, outcome: str, seconds: float, checkpoint: Path | None) -> Summary:
        """What it came to, as training runs sum up."""
        measured = self.measured
        return Summary(
            outcome=outcome,
            steps=0 if measured is None else measured.step,
            episodes=self.tally.episodes,
            tokens=self.tokens,
            seconds=seconds,
            reward_after=None if measured is None else measured.sampled,
            reward_after_greedy=None if measured is None else measured.greedy,
            checkpoint=None if checkpoint is None else str(checkpoint),
            **self.tally.counts(),
            reasons=self.tally.reasons(),
        )


@contextlib.contextmanager
def evaluation_folder(config: Config, checkpoint: Path | None, reporter: Reporter) -> Iterator[EvaluationFolder]:
    """Make the folder for an evaluation of the weights in ``checkpoint``, and sum up at its end.

    Of one that fails before it has an episode nothing is left but what its processes printed. Raises
    ``ConfigError`` or ``RunError`` where the folder cannot be made or written.
    """
    folder, began = RunFolder.create_evaluation(config, checkpoint), time.monotonic()
    episodes = 0
    try:
        with (
            contextlib.closing(RunLog(folder.logs / _LOG)) as log,
            EpisodeStore(folder.episodes) as store,
            MetricsLog(folder.metrics) as metrics,
        ):
            keeping = EvaluationFolder(folder, Reporters(reporter, log), store, metrics)
            for note in store.notes:
                keeping.reporter.note(note)
            outcome = "interrupted"
            try:
                yield keeping
                outcome = "completed"
            except Exception as error:
                outcome = f"failed: {error}" if isinstance(error, AgentRLError) else f"failed: {type(error).__name__}"
                raise
            finally:
                episodes = keeping.tally.episodes
                summary = keeping.summary(outcome, time.monotonic() - began, checkpoint)
                log.run_finished(summary)
                with contextlib.nullcontext() if outcome == "completed" else contextlib.suppress(AgentRLError):
                    folder.write_summary(summary)
    except BaseException:
        if episodes or _printed(folder):
            reporter.note(f"what there is of the evaluation is in {folder.path}")
        else:
            folder.remove()
        raise


def _printed(folder: RunFolder) -> bool:
    """Whether a process of an agent or of the backend has printed anything."""
    logs = [path for path in folder.logs.rglob("*.log*") if path.name != _LOG]
    return any(not line.startswith(b"--- ") for log in logs for line in log.read_bytes().splitlines())
