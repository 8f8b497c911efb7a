"""The ``wandb`` tracker: curves, config, episodes and summary at Weights & Biases, or in its files, to be synced later.

The steps of a run there are those of ours. Its history only grows, so what a resumed run repeats is left out there,
unless ``rewind`` has the server take it back.
"""

from __future__ import annotations

import contextlib
import json
import netrc
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from agentrl.config.section import Settings as Section
from agentrl.errors import PluginError, one_line
from agentrl.reporting.samples import COLUMNS, Samples, row
from agentrl.rollout.contract import Episode
from agentrl.runs.contract import RunInfo, Summary
from agentrl.runs.folder import write_atomically

if TYPE_CHECKING:
    import wandb

__all__ = ["WandbTracker"]

_LATE = "evaluation/step"
"""What evaluations are drawn over: one beside training may end after later steps."""
_READ_LATER = "WANDB_DATA_DIR"
"""Where wandb puts what an offline run uploads when it is synced; without it, in the user's data folder."""


class WandbTracker:
    """Logs to Weights & Biases by the ``wandb`` package, or offline into ``wandb/`` in the run folder.

    What it remembers of a run is in ``wandb.json`` there. Nothing of the command line, the environment or the output of
    the process is sent, and nothing at all offline.
    """

    class Settings(Section):
        """The keys beside the name of the tracker."""

        project: str = "agentrl"
        """The project that the run belongs to."""
        entity: str | None = None
        """The user or team whose project it is; by default that of the login."""
        mode: Literal["online", "offline"] | None = None
        """`offline` writes files that `wandb sync` sends; by default as `WANDB_MODE` says, or else `online`."""
        name: str | None = None
        """The run's name there; by default its own."""
        group: str | None = None
        """What runs are grouped by there."""
        tags: list[str] = Field([])
        """Tags of the run."""
        notes: str | None = None
        """A description of the run."""
        episodes: int = Field(8, ge=0)
        """How many sample episodes a table shows; 0 shows none."""
        episodes_every: int = Field(10, ge=1)
        """Steps between tables of training episodes. Every evaluation has one."""
        rewind: bool = False
        """Whether a resumed run has the server forget the steps that come again, which it only does where rewinding is
        enabled; otherwise the first record of these steps stays."""

    def __init__(self, settings: Settings) -> None:
        # Before the import: no reports about errors of wandb itself, unless somebody wants them.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        self._settings = settings
        self._samples = Samples(settings.episodes)
        self._run: wandb.Run | None = None
        self._logged = _Logged()
        self._row = 0
        """The number of the row that is written."""

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> str:
        """Begin a run there, or go on with it. Raises ``PluginError`` where wandb does not know who is logging."""
        mode = self._settings.mode or os.environ.get("WANDB_MODE") or "online"
        if mode == "online":
            self._check_login()
        (run.folder / "wandb").mkdir(parents=True, exist_ok=True)
        state = run.folder / "wandb.json"
        self._logged = _Logged.read(state) if run.resumed_from is not None else _Logged(state)
        with _data_folder(run.folder / "wandb" / "data"):
            self._run = self._begun(run, config, mode)
        self._row = self._logged.row + 1 if run.resumed_from is not None else 0
        if run.resumed_from is not None and self._settings.rewind:
            self._logged.forget_after(run.resumed_from)
            self._row = run.resumed_from + 1
        self._run.define_metric(_LATE, hidden=True)
        self._run.define_metric("evaluation/*", step_metric=_LATE)
        if mode == "online":
            return str(self._run.url)
        return (
            f"send it with `wandb sync {os.path.relpath(self._run.settings.sync_dir)}`" if mode == "offline" else mode
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row, or to the row of the step, unless the run has logged the step before."""
        is_evaluation = any(name.startswith("evaluation/") for name in metrics)
        taken = self._samples.take("eval", "eval-greedy") if is_evaluation else self._samples.take("train")
        if self._run is None or not self._logged.add(step, is_evaluation=is_evaluation):
            return
        self._row = self._logged.row = max(step, self._row)
        values: dict[str, Any] = dict(metrics)
        if is_evaluation:
            values[_LATE] = step
        if is_evaluation or step % self._settings.episodes_every == 0:
            with _data_folder(Path(self._run.settings.wandb_dir) / "data"):
                tables = {f"episodes/{phase}": self._table(step, episodes) for phase, episodes in taken.items()}
                self._run.log(values | tables, step=self._row)
        else:
            self._run.log(values, step=self._row)
        self._logged.write()

    def log_episode(self, episode: Episode) -> None:
        """Keep an episode for the next table, if it is among the first."""
        if self._settings.episodes:
            self._samples.add(episode)

    def log_summary(self, summary: Summary) -> None:
        """Put the numbers of the summary beside the last values of the metrics."""
        if self._run is not None:
            self._run.summary.update({name: value for name, value in summary.to_json().items() if value is not None})

    def finish(self, outcome: str) -> None:
        """Send what is left, and mark the run there as finished or failed."""
        if self._run is not None:
            self._run.summary["outcome"] = outcome
            self._run.finish(exit_code=0 if outcome == "completed" else 1)
            self._run = None

    def _begun(self, run: RunInfo, config: Mapping[str, Any], mode: str) -> wandb.Run:
        settings, id = self._settings, self._logged.id
        again: dict[str, Any] = {} if id is None else {"id": id, "resume": "allow"}
        if id is not None and settings.rewind:
            again = {"resume_from": f"{id}?_step={run.resumed_from}"}
        # The folder of a session is named by the second in which it begins.
        suffix = "" if run.resumed_from is None else f"from-{run.resumed_from}"
        try:
            begun = self._wandb.init(
                project=settings.project,
                entity=settings.entity,
                name=settings.name or run.name,
                group=settings.group,
                tags=settings.tags,
                notes=settings.notes,
                config=dict(config),
                dir=run.folder,
                mode=mode,  # type: ignore[arg-type]
                reinit="create_new",
                save_code=False,
                settings=self._wandb.Settings(
                    console="off",
                    silent=True,
                    disable_git=True,
                    disable_code=True,
                    x_disable_meta=True,
                    x_sync_dir_suffix=suffix,
                ),
                **again,
            )
        except (self._wandb.errors.AuthenticationError, self._wandb.errors.UsageError) as error:
            raise PluginError(f"tracker wandb cannot log: {one_line(str(error))}", fix=_LOGIN) from error
        self._logged.id = begun.id
        self._logged.write()
        return begun

    def _table(self, step: int, episodes: Sequence[Episode]) -> wandb.Table:
        rows = [row(step, episode) for episode in episodes]
        return self._wandb.Table(columns=[*COLUMNS], data=[[each[name] for name in COLUMNS] for each in rows])

    def _check_login(self) -> None:
        """Raise ``PluginError`` where there is no key: wandb would ask for one on the terminal."""
        known = self._wandb.setup().settings
        if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or known.api_key:
            return
        host = urlsplit(known.base_url).hostname or ""
        for place in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
            try:
                if place and netrc.netrc(Path(place).expanduser()).authenticators(host):
                    return
            except (OSError, netrc.NetrcParseError):
                continue
        raise PluginError(f"tracker wandb has no API key for {host}", fix=_LOGIN)


@contextlib.contextmanager
def _data_folder(path: Path) -> Iterator[None]:
    """Have wandb keep in ``path`` what a later ``wandb sync`` uploads, unless the user has said where.

    It asks the environment each time that it stages a file.
    """
    if os.environ.get(_READ_LATER):
        yield
        return
    os.environ[_READ_LATER] = str(path.resolve())
    try:
        yield
    finally:
        del os.environ[_READ_LATER]


_LOGIN = "run `wandb login`, set WANDB_API_KEY, or log offline with trackers=[{name: wandb, mode: offline}]"


class _Logged:
    """What a run has logged so far, in a file beside it, from which a resumed run goes on."""

    def __init__(
        self, path: Path | None = None, id: str | None = None, step: int = -1, evaluation: int = -1, row: int = -1
    ) -> None:
        self.id = id
        """The run's id there."""
        self.row = row
        """The number of the last row."""
        self._path = path
        self._step = step
        self._evaluation = evaluation

    @classmethod
    def read(cls, path: Path) -> _Logged:
        """What the file ``path`` holds; nothing where there is none."""
        try:
            return cls(path, **json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls(path)

    def add(self, step: int, *, is_evaluation: bool) -> bool:
        """Note that ``step``, or its evaluation, is logged now; whether it had not been before."""
        before = self._evaluation if is_evaluation else self._step
        if step <= before:
            return False
        if is_evaluation:
            self._evaluation = step
        else:
            self._step = step
        return True

    def forget_after(self, step: int) -> None:
        """What was logged after ``step`` is going to be logged again."""
        self.row, self._step, self._evaluation = step, min(self._step, step), min(self._evaluation, step)

    def write(self) -> None:
        """Write the file."""
        if self._path is not None:
            logged = {"id": self.id, "step": self._step, "evaluation": self._evaluation, "row": self.row}
            write_atomically(self._path, json.dumps(logged) + "\n")
