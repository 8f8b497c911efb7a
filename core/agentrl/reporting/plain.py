"""Progress as plain lines: for files, pipes and terminals that cannot redraw."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TextIO

from agentrl.errors import one_line
from agentrl.reporting.progress import Progress, Reading
from agentrl.reporting.reporter import Plan
from agentrl.rollout.contract import Episode, Failure
from agentrl.rollout.tally import Kind, Tally
from agentrl.runs.summary import Summary, duration, reward_text

__all__ = ["FAILURES", "PlainReporter", "plan_text", "reading_text", "step_text", "traceback_lines"]

FAILURES: Final[tuple[Kind, ...]] = ("failed", "retried")
"""What is nobody's intention: told whenever there is any."""


class PlainReporter:
    """Writes a line for what happens once, and of what repeats one at most every ``interval`` seconds.

    Stages are named when they first come, and again where they proved long; a long one counts its episodes.
    A step's line counts what went wrong since the one before it; what failed is told with its commonest cause, and so
    is all else after the first step and the last.
    Writing to a stream that is gone, a closed pipe or a full disk, ends the narration and not the run.
    """

    def __init__(
        self,
        stream: TextIO,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        *,
        tracebacks: bool = False,
    ) -> None:
        """``tracebacks`` says whether the first failure of each cause is shown with its own."""
        self._tracebacks = tracebacks
        self._stream = stream
        self._interval = interval
        self._clock = clock
        self._progress = Progress(clock)
        self._short: set[str] = set()
        self._last_sign = self._last_step = float("-inf")
        self._trained, self._evaluated = Tally(), Tally()

    def run_started(self, plan: Plan) -> None:
        """Say what is going to happen."""
        self._progress.run_started(plan)
        self._line(plan_text(plan))

    def stage(self, name: str, episodes: int | None = None) -> None:
        """Name it, unless it has been named before and is soon over."""
        if (ended := self._progress.stage) is not None and self._progress.elapsed(ended) >= self._interval:
            self._short.discard(ended.name)
        self._progress.start_stage(name, episodes)
        if name not in self._short:
            self._short.add(name)
            self._line(name if episodes is None else f"{name}, {episodes:,} episodes")
        self._last_sign = self._clock()

    def episode_finished(self, episode: Episode) -> None:
        """Count, and show it when the stage is a long one."""
        for failure in self._progress.episode_finished(episode):
            self._traceback(episode, failure)
        (self._trained if episode.key.phase == "train" else self._evaluated).add(episode)
        stage = self._progress.stage
        if stage is not None and self._clock() - self._last_sign >= self._interval:
            self._last_sign = self._clock()
            self._line(stage.text)

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """Say how it went: the first, the last, and those between when it is time."""
        self._progress.step_finished(step, metrics)
        is_first, is_last = self._last_step == float("-inf"), self._progress.is_last_step
        if is_last or self._clock() - self._last_step >= self._interval:
            self._last_step = self._clock()
            self._line(step_text(self._progress, self._trained))
            self._tell(self._trained, None if is_first or is_last else FAILURES)
            self._trained = Tally()

    def evaluation_finished(self, step: int, results: Mapping[str, float]) -> None:
        """Say what was measured."""
        self._line(reading_text(self._progress.evaluation_finished(step, results)))
        self._tell(self._evaluated, FAILURES)
        self._evaluated = Tally()

    def note(self, text: str) -> None:
        """Say it."""
        self._line(f"note: {text}")

    def warning(self, text: str) -> None:
        """Say it."""
        self._line(f"warning: {text}")

    def run_finished(self, summary: Summary) -> None:
        """Nothing is left to say here: what was learned is a result, and no narration."""

    def close(self) -> None:
        """Nothing is held: the stream is the caller's."""

    def _tell(self, tally: Tally, kinds: Sequence[Kind] | None) -> None:
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


def plan_text(plan: Plan) -> str:
    """What is going to happen, in one line."""
    reward = "its own" if plan.reward is None else plan.reward
    steps = f"{plan.steps:,} step{'' if plan.steps == 1 else 's'}"
    episodes = f"{plan.episodes_per_step:,} episode{'' if plan.episodes_per_step == 1 else 's'}"
    return (
        f"training {plan.agent} on {plan.model}: tasks {plan.tasks}, held out {plan.held_out or 'none'}, "
        f"reward {reward}; {steps} of {episodes}, in {plan.folder}"
    )


def traceback_lines(episode: Episode, failure: Failure) -> list[str]:
    """The traceback of the first failure of its cause."""
    return [f"{episode.key}: {failure}", *(f"    {line}" for line in failure.traceback.splitlines())]


def step_text(progress: Progress, tally: Tally) -> str:
    """How the newest step went, and what ``tally`` counted since the last that was told, in one line."""
    plan, reward = progress.plan, progress.rewards[-1]
    parts = ["no rewarded episode" if reward is None else f"reward {reward_text(reward)}", *tally.brief()]
    if (speed := progress.throughput) is not None:
        parts.append(f"{speed.episodes:,.1f} episodes/s, {speed.tokens:,.0f} tokens/s")
    if (each := progress.seconds_per_step) is not None:
        parts.append(f"{each:.2f} s a step")
    if plan is not None and progress.step < plan.steps and (left := progress.seconds_left) is not None:
        parts.append(f"{duration(left)} left")
    return f"step {progress.step}{'' if plan is None else f'/{plan.steps}'}: {', '.join(parts)}"


def reading_text(reading: Reading) -> str:
    """What an evaluation measured, in one line."""
    named = [("sampled", reading.sampled), ("greedy", reading.greedy)]
    rewards = ", ".join(f"{reward_text(value)} {name}" for name, value in named if value is not None)
    return f"after step {reading.step}: held-out reward {rewards or 'not measured'}"
