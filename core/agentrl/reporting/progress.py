"""How far a run is, in numbers: what every display shows in its own way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from agentrl.reporting.reporter import Plan
from agentrl.rollout.contract import Episode, Failure
from agentrl.rollout.tally import Tally

__all__ = ["Progress", "Reading", "Stage", "Throughput"]


class Reading(NamedTuple):
    """Held-out mean rewards of one evaluation; ``None`` where it did not measure one."""

    step: int
    sampled: float | None
    greedy: float | None


class Throughput(NamedTuple):
    """Of a whole step, learning included, a second."""

    episodes: float
    tokens: float


@dataclass
class Stage:
    """What goes on."""

    name: str
    since: float
    episodes: int | None = None
    done: int = 0
    failed: int = 0

    @property
    def text(self) -> str:
        """In words: ``evaluating, 12 of 256 episodes, 3 failed``."""
        if self.episodes is None:
            return self.name
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{self.name}, {self.done:,} of {self.episodes:,} episodes{failed}"


class Progress:
    """Adds up what a run reports. Reading it from another thread is safe, if a moment out of date."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._training_since = clock()
        self._step_ended = self._training_since
        self._steps_timed = 0
        self.plan: Plan | None = None
        self.stage: Stage | None = None
        self.step = 0
        self.rewards: list[float | None] = []
        """Mean reward of each step so far, ``None`` where no episode had one."""
        self.readings: list[Reading] = []
        self.metrics: Mapping[str, float] = {}
        """Of the newest step."""
        self.tally = Tally()
        """What did not go as it should in all episodes so far."""

    def run_started(self, plan: Plan) -> None:
        """Begin."""
        self.plan = plan
        self._training_since = self._clock()

    def start_stage(self, name: str, episodes: int | None) -> None:
        """Something else goes on from now."""
        self.stage = Stage(name, self._clock(), episodes)

    def episode_finished(self, episode: Episode) -> list[Failure]:
        """Count an episode of the stage. Returns those of its failures whose cause is new."""
        if self.stage is not None:
            self.stage.done += 1
            self.stage.failed += episode.outcome == "failed"
        return self.tally.add(episode)

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in a step's numbers."""
        self.step = step
        self.metrics = dict(metrics)
        self.rewards.append(metrics.get("reward/mean"))
        self._step_ended = self._clock()
        self._steps_timed += 1

    def evaluation_finished(self, step: int, results: Mapping[str, float]) -> Reading:
        """Take in an evaluation; the time of the first, before any step, says nothing about what is left."""
        reading = Reading(step, results.get("evaluation/reward"), results.get("evaluation/reward_greedy"))
        self.readings.append(reading)
        if not self._steps_timed:
            self._training_since = self._clock()
        return reading

    def elapsed(self, stage: Stage) -> float:
        """Seconds since ``stage`` began."""
        return self._clock() - stage.since

    @property
    def is_last_step(self) -> bool:
        """Whether the newest step is the last that is planned."""
        return self.plan is not None and self.step == self.plan.steps

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the steps so far, with the evaluations and checkpoints between them."""
        return (self._step_ended - self._training_since) / self._steps_timed if self._steps_timed else None

    @property
    def seconds_left(self) -> float | None:
        """Until the last step has ended, if the steps to come are like those so far."""
        each = self.seconds_per_step
        if each is None or self.plan is None:
            return None
        return max(0.0, each * (self.plan.steps - self.step) - (self._clock() - self._step_ended))

    @property
    def throughput(self) -> Throughput | None:
        """Of the newest step."""
        seconds = self.metrics.get("seconds/step")
        if not seconds:
            return None
        return Throughput(
            self.metrics.get("rollout/episodes", 0.0) / seconds, self.metrics.get("tokens/completion", 0.0) / seconds
        )

    @property
    def seconds_by_stage(self) -> dict[str, float]:
        """Of the newest step, without the whole step and without the parts of a stage."""
        return {
            name.removeprefix("seconds/"): seconds
            for name, seconds in self.metrics.items()
            if name.startswith("seconds/") and name.count("/") == 1 and name != "seconds/step"
        }
