"""One reader of a run folder, for scripts, the command line, resume and viewers; it works while the run goes on.

::

    from agentrl import open_run

    run = open_run("runs/quickstart")
    run.state, run.summary, run.best_checkpoint()
    for row in run.episodes(phase="train", outcome="failed", limit=20):
        print(row.key, row.failure_reason)
    episode = run.episode("train-12-3-0")
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from agentrl.costs.cost import Cost
from agentrl.errors import ConfigError, near_matches
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.runs.contract import (
    Checkpoint,
    CountKey,
    EpisodeFilter,
    EpisodeRow,
    GroupRow,
    MetricsLine,
    RunInfo,
    RunState,
    SortKey,
    Summary,
    TrainedTokens,
)
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.folder import RunFolder, is_locked, read_summary, run_names
from agentrl.runs.metrics import MetricsReader, cost_of

if TYPE_CHECKING:
    import datasets
    import pandas

    from agentrl.config.models import Config

__all__ = ["Run", "open_run"]


def open_run(run: str | os.PathLike[str], *, runs: str | os.PathLike[str] = "runs") -> Run:
    """The run in the folder ``run``, or the run of that name in the folder ``runs``.

    Nothing is read yet but that the folder is there. Raises ``ConfigError`` where it is no run folder.
    """
    path = Path(run).expanduser()
    inside = Path(runs).expanduser() / path
    for folder in (path, inside):
        if (folder / "config.yaml").is_file():
            return Run(folder)
    raise ConfigError(
        f"there is no run {str(run)!r}: neither {path} nor {inside} is a run folder with a config.yaml",
        fix=near_matches(path.name, run_names(runs)),
    )


class Run:
    """What a run has left, or has left so far, in the folder ``path``. Methods may be called from any thread.

    Every call reads the present state of the files, except that ``config`` is read once. Raises ``RunError`` for files
    that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = RunFolder(path)
        self._metrics = MetricsReader(self._folder.metrics)
        self._store = EpisodeReader(self._folder.episodes)

    @property
    def name(self) -> str:
        """The run's name, which is that of its folder."""
        return self.path.resolve().name

    @cached_property
    def config(self) -> Config:
        """The resolved config of the run. Raises ``ConfigError`` where this version does not know one of its keys."""
        from agentrl.config import load_config

        return load_config(self._folder.config, environ={})

    @property
    def info(self) -> RunInfo:
        """The name, folder, agent, model and size of the run."""
        return self._folder.info(self.config)

    @property
    def state(self) -> RunState:
        """Whether the run is going on, and else how it ended."""
        if is_locked(self.path):
            return "running"
        summary = self.summary
        if summary is None:
            return "killed"
        outcome = summary.outcome.partition(":")[0]
        return outcome if outcome in ("completed", "interrupted") else "failed"  # type: ignore[return-value]

    @property
    def summary(self) -> Summary | None:
        """What the run came to; ``None`` before its end, and where it was killed."""
        return read_summary(self._folder.summary) if self._folder.summary.exists() else None

    @property
    def cost(self) -> Cost:
        """What the run has cost so far, by its summary where it has ended, and else by its metrics."""
        summary = self.summary
        return cost_of(self.metrics()) if summary is None or not summary.cost else Cost.from_json(summary.cost)

    def metrics(self) -> list[MetricsLine]:
        """All lines of ``metrics.jsonl``, in the order in which they were written."""
        return self._metrics.read()

    def steps(self) -> list[MetricsLine]:
        """The metrics of each optimiser step."""
        return [line for line in self.metrics() if not line.is_evaluation]

    def evaluations(self) -> list[MetricsLine]:
        """The results of each evaluation."""
        return [line for line in self.metrics() if line.is_evaluation]

    def checkpoints(self) -> list[Checkpoint]:
        """The complete checkpoints, those after fewer steps first; one that is being written is not among them."""
        from agentrl.inference.model_folder import saved_checkpoints

        return [Checkpoint(step, path) for step, path in sorted(saved_checkpoints(self.path).items())]

    def newest_checkpoint(self) -> Checkpoint | None:
        """The checkpoint after the most steps; ``None`` where there is none."""
        return max(self.checkpoints(), key=lambda saved: saved.step, default=None)

    def best_checkpoint(self) -> Checkpoint | None:
        """The checkpoint whose evaluation has the highest sampled reward, or the lowest loss, the newest of equal ones.

        ``None`` where no checkpoint has been evaluated.
        """
        scores = {line.step: line.score for line in self.evaluations()}
        evaluated = [(score, saved) for saved in self.checkpoints() if (score := scores.get(saved.step)) is not None]
        return max(evaluated, key=lambda pair: (pair[0], pair[1].step))[1] if evaluated else None

    def episodes(
        self,
        *,
        sort: SortKey = "committed",
        descending: bool = False,
        limit: int | None = None,
        offset: int = 0,
        **filters: Unpack[EpisodeFilter],
    ) -> tuple[EpisodeRow, ...]:
        """At most ``limit`` of the episodes that match ``filters``, after the first ``offset``, ordered by ``sort``.

        Episodes that have no such value come last, and equal ones in the order of their commits. No task, message or
        token is read.
        """
        return self._store.rows(sort=sort, descending=descending, limit=limit, offset=offset, **filters)

    def page(
        self,
        *,
        sort: SortKey = "committed",
        descending: bool = False,
        limit: int,
        offset: int = 0,
        **filters: Unpack[EpisodeFilter],
    ) -> tuple[tuple[EpisodeRow, ...], int]:
        """What ``episodes`` gives, and what ``count`` gives, for hardly more than the time of one of them."""
        return self._store.page(sort, descending, limit, offset, **filters)

    def count(self, **filters: Unpack[EpisodeFilter]) -> int:
        """How many episodes match ``filters``."""
        return self._store.count(**filters)

    def counts(self, by: CountKey, **filters: Unpack[EpisodeFilter]) -> dict[str | int, int]:
        """How many of the episodes that match ``filters`` have each value of ``by``; those without one do not count."""
        return self._store.counts(by, **filters)

    def groups(
        self, *, limit: int | None = None, offset: int = 0, **filters: Unpack[EpisodeFilter]
    ) -> tuple[GroupRow, ...]:
        """At most ``limit`` groups with an episode that matches ``filters``, each with all of its episodes."""
        return self._store.groups(limit=limit, offset=offset, **filters)

    def episode(self, key: EpisodeKey | str) -> Episode:
        """The whole episode of ``key``, such as ``train-12-3-0``, with its calls and its token tree.

        Raises ``RunError`` where there is none, and ``ConfigError`` for a text that is no key.
        """
        return self._store.episode(key)

    def row(self, key: EpisodeKey | str) -> EpisodeRow:
        """The episode of ``key`` as lists show it. Raises as ``episode`` does."""
        return self._store.row(key)

    def trained(self, key: EpisodeKey | str) -> TrainedTokens | None:
        """What the optimiser step that the episode's group was in made of each of its sampled tokens.

        ``None`` before that step has ended, for an episode of no step, and in a store that an older version has
        written. Raises as ``episode`` does.
        """
        return self._store.trained(key)

    def outlines(self, after: int = 0) -> Iterator[Episode]:
        """All episodes in the order of their commits, without tasks, answers, requests, messages and tokens.

        Those whose ``EpisodeRow.id`` is not above ``after`` are left out. What is left of an episode says how it ended
        and what went wrong in it.
        """
        return self._store.outlines(after)

    def load_episodes(self, **filters: Unpack[EpisodeFilter]) -> Iterator[Episode]:
        """Whole episodes that match ``filters``, in the order of their commits, read a page at a time."""
        return self._store.load(**filters)

    def metrics_frame(self) -> pandas.DataFrame:
        """``metrics`` for pandas: one row a line, with ``step``, ``time`` and a column for each metric.

        Raises ``MissingExtra`` where pandas is not installed.
        """
        from agentrl.runs.frames import metrics_frame

        return metrics_frame(self.metrics())

    def episodes_frame(
        self,
        *,
        sort: SortKey = "committed",
        descending: bool = False,
        limit: int | None = None,
        offset: int = 0,
        **filters: Unpack[EpisodeFilter],
    ) -> pandas.DataFrame:
        """``episodes`` for pandas: one row an episode, with the columns of ``EpisodeRow`` and the parts of its key.

        Raises ``MissingExtra`` where pandas is not installed.
        """
        from agentrl.runs.frames import episodes_frame

        return episodes_frame(self.episodes(sort=sort, descending=descending, limit=limit, offset=offset, **filters))

    def dataset(self, *, tokens: bool = True, **filters: Unpack[EpisodeFilter]) -> datasets.Dataset:
        """Whole episodes that match ``filters``, in the order of their commits, as a ``datasets.Dataset`` in memory.

        It has the columns of ``episodes_frame``; ``data`` and ``answer``, which are JSON; ``messages``, the
        conversation of the last call with its answer; and with ``tokens``, lists with a value for each sampled token:
        ``token_ids``, ``token_logprobs``, ``token_versions``, ``token_fates``, and ``trained_advantages`` and the other
        columns of ``TrainedTokens``, which are empty where no step has trained the episode. An episode of 300 tokens
        takes about 20 kB. Raises ``MissingExtra`` where datasets is not installed.
        """
        from agentrl.runs.frames import episodes_dataset

        return episodes_dataset(self._store.whole(**filters), tokens)
