"""Progress as plain lines: for files, pipes and terminals that cannot redraw, and for ``logs/run.log``.

``Progress`` adds up what a run reports; the live display draws the same numbers.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TextIO, cast

from agentrl.costs.cost import Cost
from agentrl.errors import cannot_write, one_line
from agentrl.rollout.contract import Episode, Failure
from agentrl.runs.contract import RunInfo, Summary
from agentrl.runs.ledger import Ledger
from agentrl.runs.tally import Kind, Reason, Tally, sentence

__all__ = [
    "FAILURES",
    "Interesting",
    "PlainReporter",
    "Progress",
    "Reading",
    "RunLog",
    "cost_lines",
    "duration",
    "final_lines",
    "reading_text",
    "reward_text",
    "run_text",
    "step_text",
    "traceback_lines",
]

_HEALTH = "health: "
"""What the warnings of the rules of learning health begin with."""
FAILURES: Final[tuple[Kind, ...]] = ("failed", "retried")
"""The counts that are reported whenever they are not 0, since nobody intends them."""


class PlainReporter:
    """Writes a line for everything that happens once, and at most one every ``interval`` seconds for what repeats.

    An activity is named when it first comes, and again where it took longer than ``interval``; during a long one
    the finished episodes are counted. A step's line counts what went wrong since the step's line before it, and after
    it comes the ledger of the steps since then, unless all of their episodes were trained. Failures
    are reported with the commonest reason; so is everything else that was counted after the first step and the last.
    A stream that can no longer be written, such as a closed pipe or a full disk, ends the lines and not the run.
    """

    def __init__(
        self,
        stream: TextIO,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        *,
        tracebacks: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """``tracebacks`` says whether the first failed episode of each reason is shown with its traceback.

        ``progress`` is what is known of the run already, by ``clock``; by default nothing is.
        """
        self._tracebacks = tracebacks
        self._stream = stream
        self._interval = interval
        self._clock = clock
        self._progress = progress or Progress(clock)
        self._short: set[str] = set()
        self._last_sign = self._last_step = float("-inf")
        self._trained, self._evaluated = Tally(), Tally()
        self._ledger = Ledger()

    def run_started(self, run: RunInfo) -> None:
        """Write what is going to be trained."""
        self._progress.run_started(run)
        self._line(run_text(run))

    def activity_started(self, name: str, episodes: int | None = None) -> None:
        """Write its name, unless it has been named before and was short."""
        if (ended := self._progress.activity) is not None and self._progress.elapsed(ended) >= self._interval:
            self._short.discard(ended.name)
        self._progress.activity_started(name, episodes)
        if name not in self._short:
            self._short.add(name)
            self._line(name if episodes is None else f"{name}, {episodes:,} episodes")
        self._last_sign = self._clock()

    def episode_finished(self, episode: Episode) -> None:
        """Count it, and write the count during a long activity."""
        for failure in self._progress.episode_finished(episode):
            self._traceback(episode, failure)
        (self._trained if episode.key.phase == "train" else self._evaluated).add(episode)
        activity = self._progress.activity
        if activity is not None and self._clock() - self._last_sign >= self._interval:
            self._last_sign = self._clock()
            self._line(activity.text)

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a line for the first step, the last, and those between at most every ``interval`` seconds."""
        self._progress.step_finished(step, metrics)
        self._ledger += Ledger.of_metrics(metrics)
        is_first, is_last = self._last_step == float("-inf"), self._progress.is_last_step
        if is_last or self._clock() - self._last_step >= self._interval:
            self._last_step = self._clock()
            self._line(step_text(self._progress, self._trained))
            if self._ledger.all_but_trained:
                self._line(_ledger_text(self._ledger))
            self._ledger = Ledger()
            self._counts(self._trained, None if is_first or is_last else FAILURES)
            self._trained = Tally()

    def evaluation_finished(self, step: int, results: Mapping[str, float]) -> None:
        """Write the held-out rewards."""
        self._line(reading_text(self._progress.evaluation_finished(step, results)))
        self._counts(self._evaluated, FAILURES)
        self._evaluated = Tally()

    def note(self, text: str) -> None:
        """Write it as ``note: …``."""
        self._line(f"note: {text}")

    def warning(self, text: str) -> None:
        """Write it as ``warning: …``."""
        self._progress.warning(text)
        self._line(f"warning: {text}")

    def run_finished(self, summary: Summary) -> None:
        """Write nothing: the summary is a result, which the command line prints on stdout."""

    def close(self) -> None:
        """Leave the stream open: it is the caller's."""

    def _counts(self, tally: Tally, kinds: Sequence[Kind] | None) -> None:
        for text in tally.lines(kinds):
            self._line(text)

    def _traceback(self, episode: Episode, failure: Failure) -> None:
        if self._tracebacks and failure.traceback:
            for line in traceback_lines(episode, failure):
                self._write(line)

    def _line(self, text: str) -> None:
        self._write(one_line(text))

    def _write(self, line: str) -> None:
        # One write, so that the lines of several threads do not mix.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()


class RunLog(PlainReporter):
    """Appends plain lines to ``path``, each with its local time; the first failure of each reason has its traceback.

    Raises ``RunError`` where the file cannot be opened. Where the disk fills later the lines end, and the run's own
    writes to that disk report it.
    """

    def __init__(self, path: Path, now: Callable[[], datetime] = datetime.now) -> None:
        try:
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise cannot_write(path, error) from error
        self._now = now
        super().__init__(self._file, tracebacks=True)

    def run_finished(self, summary: Summary) -> None:
        """Write the lines that the command line prints at the end of the run."""
        for line in final_lines(summary):
            self._line(line)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()

    def _write(self, line: str) -> None:
        super()._write(f"{self._now():%Y-%m-%d %H:%M:%S} {line}")


class Reading(NamedTuple):
    """Held-out mean rewards of one evaluation; ``None`` where it did not measure one."""

    step: int
    sampled: float | None
    greedy: float | None
    loss: float | None = None
    """Mean held-out loss of a token, where conversations are imitated."""


class Interesting(NamedTuple):
    """An episode that is worth a look."""

    why: Literal["best", "worst", "failed"]
    """It has the highest or the lowest reward since the step before it was trained, or it failed."""
    episode: Episode


class Throughput(NamedTuple):
    """Episodes and sampled tokens a second over a whole step, learning included."""

    episodes: float
    tokens: float


@dataclass
class Activity:
    """What the run is doing at the moment, such as rolling out."""

    name: str
    since: float
    """When it began, in seconds of the reporter's clock."""
    episodes: int | None = None
    """How many episodes it consists of; ``None`` where it has none."""
    done: int = 0
    failed: int = 0

    @property
    def text(self) -> str:
        """Its name and its progress: ``evaluating, 12 of 256 episodes, 3 failed``."""
        if self.episodes is None:
            return self.name
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{self.name}, {self.done:,} of {self.episodes:,} episodes{failed}"


class Progress:
    """Adds up what a run reports. Reading it from another thread is safe, though it may be a moment out of date."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._training_since = clock()
        self._step_ended = self._training_since
        self._steps_timed = 0
        self.run: RunInfo | None = None
        self.activity: Activity | None = None
        self.step = 0
        self.losses: list[float] = []
        """Loss of each step so far, where conversations are imitated."""
        self.rewards: list[float | None] = []
        """Mean reward of each step so far, ``None`` where no episode had one."""
        self.readings: list[Reading] = []
        self.metrics: Mapping[str, float] = {}
        """Metrics of the newest step."""
        self.tally = Tally()
        """Failures and other counts over all episodes so far."""
        self.ledger = Ledger()
        """What became of the episodes of all steps so far."""
        self.findings: list[tuple[int, str]] = []
        """What the rules of learning health have found, each with the step after which it was said."""
        self.interesting: Interesting | None = None
        """The last episode that is worth a look."""
        self._rewards: tuple[float, float] | None = None
        """The lowest and the highest reward since the last step."""

    def run_started(self, run: RunInfo) -> None:
        """Remember which run it is and start the clock of its steps."""
        self.run = run
        self.step = run.resumed_from or 0
        self._training_since = self._clock()
        self._steps_timed = 0

    def activity_started(self, name: str, episodes: int | None) -> None:
        """Begin a new activity; the one before it is over."""
        self.activity = Activity(name, self._clock(), episodes)

    def episode_finished(self, episode: Episode) -> list[Failure]:
        """Count an episode of the activity. Returns those of its failures whose reason is new."""
        if self.activity is not None:
            self.activity.done += 1
            self.activity.failed += episode.outcome == "failed"
        self._look_at(episode)
        return self.tally.add(episode)

    def _look_at(self, episode: Episode) -> None:
        """Keep the episode where it is better or worse than all since the last step, or has failed."""
        reward = episode.reward
        if episode.outcome == "failed":
            self.interesting = Interesting("failed", episode)
        elif reward is not None:
            low, high = self._rewards or (math.inf, -math.inf)
            if reward > high or reward < low:
                self.interesting = Interesting("best" if reward > high else "worst", episode)
                self._rewards = min(low, reward), max(high, reward)

    def warning(self, text: str) -> None:
        """Keep what a rule of learning health has found."""
        if text.startswith(_HEALTH):
            self.findings.append((self.step, text.removeprefix(_HEALTH)))

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step."""
        self.step = step
        self._rewards = None
        self.metrics = dict(metrics)
        self.ledger += Ledger.of_metrics(metrics)
        if self.imitates:
            self.losses.append(metrics.get("policy/loss", float("nan")))
        else:
            self.rewards.append(metrics.get("reward/mean"))
        self._step_ended = self._clock()
        self._steps_timed += 1

    def evaluation_finished(self, step: int, results: Mapping[str, float]) -> Reading:
        """Add an evaluation. The first one comes before any step, so the time left is estimated without it."""
        rewards = results.get("evaluation/reward"), results.get("evaluation/reward_greedy")
        reading = Reading(step, *rewards, results.get("evaluation/loss"))
        self.readings.append(reading)
        if not self._steps_timed:
            self._training_since = self._clock()
        return reading

    def elapsed(self, activity: Activity) -> float:
        """Seconds since ``activity`` began."""
        return self._clock() - activity.since

    @property
    def imitates(self) -> bool:
        """Whether the run imitates conversations, and so has losses in the place of rewards."""
        return self.run is not None and self.run.kind == "imitation"

    @property
    def is_last_step(self) -> bool:
        """Whether the newest step is the last one of the run."""
        return self.run is not None and self.step == self.run.steps

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the steps so far, with the evaluations and checkpoints between them."""
        return (self._step_ended - self._training_since) / self._steps_timed if self._steps_timed else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last step ends, if the steps to come take as long as those so far."""
        each = self.seconds_per_step
        if each is None or self.run is None:
            return None
        return max(0.0, each * (self.run.steps - self.step) - (self._clock() - self._step_ended))

    @property
    def throughput(self) -> Throughput | None:
        """Throughput of the newest step; ``None`` before the first."""
        seconds = self.metrics.get("seconds/step")
        if not seconds:
            return None
        seconds += self.metrics.get("seconds/checkpoint", 0.0)  # The step's episodes begin while one is saved.
        return Throughput(
            self.metrics.get("rollout/episodes", 0.0) / seconds, self.metrics.get("tokens/completion", 0.0) / seconds
        )

    @property
    def staleness(self) -> tuple[float, float] | None:
        """How many versions old the newest step's tokens were, on average and at most; ``None`` where none was old."""
        oldest = self.metrics.get("staleness/max") or 0.0
        return (self.metrics.get("staleness/mean") or 0.0, oldest) if oldest else None

    @property
    def trained_per_second(self) -> float:
        """Trained tokens a second in the newest step; 0 before the first."""
        seconds = self.metrics.get("seconds/step")
        return self.metrics.get("tokens/trained", 0.0) / seconds if seconds else 0.0

    @property
    def seconds_by_part(self) -> dict[str, float]:
        """Seconds of the newest step by its parts (rollout, learner, weights), without the step's own total."""
        return {
            name.removeprefix("seconds/"): seconds
            for name, seconds in self.metrics.items()
            if name.startswith("seconds/") and name.count("/") == 1 and name != "seconds/step"
        }


def run_text(run: RunInfo) -> str:
    """One line that says what is going to be trained."""
    reward = "its own" if run.reward is None else run.reward
    steps = f"{run.steps:,} step{'' if run.steps == 1 else 's'}"
    if run.kind == "imitation":
        return f"fine-tuning {run.model} on {run.tasks}: held out {run.held_out or 'none'}; {steps}, in {run.folder}"
    if run.kind == "replay":
        return f"training {run.model} from stored episodes of {run.agent}: reward {reward}; {steps}, in {run.folder}"
    episodes = f"{run.episodes_per_step:,} episode{'' if run.episodes_per_step == 1 else 's'}"
    return (
        f"training {run.agent} on {run.model}: tasks {run.tasks}, held out {run.held_out or 'none'}, "
        f"reward {reward}; {steps} of {episodes}, in {run.folder}"
    )


def traceback_lines(episode: Episode, failure: Failure) -> list[str]:
    """The key of ``episode``, its failure and the traceback, indented."""
    return [f"{episode.key}: {failure}", *(f"    {line}" for line in failure.traceback.splitlines())]


def step_text(progress: Progress, tally: Tally) -> str:
    """One line for the newest step; ``tally`` counts the episodes since the step's line before it."""
    run = progress.run
    if progress.imitates:
        parts = [f"loss {progress.losses[-1]:.3f}", f"{progress.trained_per_second:,.0f} trained tokens/s"]
    else:
        reward = progress.rewards[-1]
        parts = ["no rewarded episode" if reward is None else f"reward {reward_text(reward)}", *tally.brief()]
    if not progress.imitates and (speed := progress.throughput) is not None:
        parts.append(f"{speed.episodes:,.1f} episodes/s, {speed.tokens:,.0f} tokens/s")
    if (each := progress.seconds_per_step) is not None:
        parts.append(f"{each:.2f} s a step")
    if run is not None and progress.step < run.steps and (left := progress.seconds_left) is not None:
        parts.append(f"{duration(left)} left")
    return f"step {progress.step}{'' if run is None else f'/{run.steps}'}: {', '.join(parts)}"


def reading_text(reading: Reading) -> str:
    """One line for an evaluation: ``after step 20: held-out reward 0.640 sampled, 0.710 greedy``."""
    if reading.loss is not None:
        perplexity = math.exp(min(reading.loss, 700.0))
        return f"after step {reading.step}: held-out loss {reading.loss:.3f}, perplexity {perplexity:.4g}"
    named = [("sampled", reading.sampled), ("greedy", reading.greedy)]
    rewards = ", ".join(f"{reward_text(value)} {name}" for name, value in named if value is not None)
    return f"after step {reading.step}: held-out reward {rewards or 'not measured'}"


def final_lines(summary: Summary, command: str | None = None) -> list[str]:
    """The last lines of a run: rewards, the fates of its episodes, failures, what it cost, and the checkpoint.

    ``command`` evaluates the checkpoint.
    """
    lines = [_headline(summary)]
    readings = [
        ("sampled", summary.reward_before, summary.reward_after),
        ("greedy", summary.reward_before_greedy, summary.reward_after_greedy),
    ]
    for name, before, after in readings:
        if before is not None or after is not None:
            lines.append(f"held-out reward, {name}: {_reward(before)} before, {_reward(after)} after")
    if summary.loss_before is not None or summary.loss_after is not None:
        lines.append(f"held-out loss: {_loss(summary.loss_before)} before, {_loss(summary.loss_after)} after")
    if summary.over_long:
        lines.append(f"over-long: {summary.over_long:,} conversations did not fit training.tokens_per_batch")
    if (ledger := Ledger.from_json(summary.ledger)).all_but_trained:
        lines.append(_ledger_text(ledger))
    lines += _troubles(summary)
    lines += cost_lines(summary.cost)
    if summary.checkpoint is None:
        lines.append("no checkpoint was saved")
        return lines
    lines.append(f"checkpoint: {summary.checkpoint}")
    if command is not None:
        lines.append(f"evaluate it: {command}")
    return lines


def cost_lines(cost: Mapping[str, Any]) -> list[str]:
    """Lines that say what a run or an evaluation has cost, from its ``cost``; none where nothing was counted."""
    return Cost.from_json(cost).texts(str(cost.get("currency", "")))


def _headline(summary: Summary) -> str:
    what = (summary.conversations, "conversation") if summary.conversations else (summary.episodes, "episode")
    counted = [(summary.steps, "step"), what, (summary.tokens, "token")]
    counts = ", ".join(f"{number:,} {noun}{'' if number == 1 else 's'}" for number, noun in counted)
    return f"{summary.outcome} after {counts} in {duration(summary.seconds)}"


def _ledger_text(ledger: Ledger) -> str:
    return f"ledger of {ledger}"


def _troubles(summary: Summary) -> list[str]:
    """A line for each count that is not 0, with its commonest reason."""
    return [
        sentence(cast(Kind, kind), getattr(summary, kind), summary.episodes, Reason(**reasons[0]))
        for kind, reasons in summary.reasons.items()
    ]


def reward_text(value: float) -> str:
    """A reward, or a mean of rewards, in a few characters: ``0.950``, ``3.333e+199``."""
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.4g}"


def _loss(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _reward(value: float | None) -> str:
    return "not measured" if value is None else reward_text(value)


def duration(seconds: float) -> str:
    """``seconds`` with the unit that fits: ``8.4 s``, ``2:05 min``, ``1:02:03 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
