"""Throughput of the training loop, simulated, beside what bounds it; and the real loop beside its simulation.

    python -m tests.benchmarks.staleness [--workers 100 1000 10000] [--steps 12] [--seed 0] [--real-steps 10]

The simulation runs the rule and the buffer of the real loop. Episodes are log-normal with a mean of 1 second, in groups
of 8; the learner takes 1 second a step. The bound admits as many episodes at once as there are workers, 4 times or 16
times as many, which makes for steps of other sizes. No loop is faster than its learner, or than its workers if none of
them ever idles; and none that trains groups in their order is faster than the best such schedule within the staleness
bound if every episode had a worker (``fastest`` in ``simulation.py``). Each is given in seconds a step, and *of it* is
the largest beside what the simulated loop takes. What is lost is lost where workers and bound are short at the same
time; slightly more than 1 is luck, where few workers had long groups start together. *us* is the CPU time of an event,
rule and buffer included: it should hardly grow with the number of workers.

The real loop trains the bundled model with an agent that sleeps for a log-normal time and then makes one call of two
tokens. Its episodes' and steps' times, as measured, are then simulated. To reach: within 5 %.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tests.benchmarks.simulation import Load, fastest, simulate

from agentrl import Trainer, load_config, open_run
from agentrl.reporting.plain import PlainReporter
from agentrl.rollout.staleness import StalenessBound

GROUP_SIZE = 8
SIGMAS = (0.5, 1.0, 1.5)
BOUNDS = (1, 2, 4)
MEAN_S = 1.0
"""Of what an episode of the real loop sleeps."""
CROWDS = (1, 4, 16)
"""Episodes that the bound admits, for each worker."""


def loads(workers: int, steps: int, seed: int) -> Iterator[tuple[float, int, Load]]:
    """Every load for so many workers, with its sigma and how many episodes the bound admits for each of them."""
    for sigma, max_staleness, crowd in itertools.product(SIGMAS, BOUNDS, CROWDS):
        bound = StalenessBound(max_staleness, max(1, crowd * workers // ((max_staleness + 1) * GROUP_SIZE)))
        seconds = log_normal(np.random.default_rng(seed), sigma, (bound.per_step * steps, GROUP_SIZE))
        yield sigma, crowd, Load(bound, GROUP_SIZE, workers, seconds, [1.0] * steps)


def log_normal(random: np.random.Generator, sigma: float, shape: tuple[int, int]) -> np.ndarray:
    """Numbers whose mean is 1."""
    return random.lognormal(-sigma * sigma / 2, sigma, shape)


def simulated(workers: int, steps: int, seed: int) -> None:
    for sigma, crowd, load in loads(workers, steps, seed):
        bounds = [sum(load.learner), float(load.seconds.sum()) / workers, fastest(load)]
        began = time.process_time()
        result = simulate(load)
        cost = 1e6 * (time.process_time() - began) / result.events
        learner, rollout, staleness, took = (f"{each / steps:10.2f}" for each in (*bounds, result.seconds))
        print(
            f"{workers:7}{crowd:6}{sigma:7}{load.bound.max_staleness:4}{load.bound.per_step:9}"
            f"{learner}{rollout}{staleness}{took}{max(bounds) / result.seconds:8.3f}{cost:7.1f}"
        )


class Sleeper:
    """Sleeps, then asks once. Its reward is random, so that every group teaches something."""

    def __init__(self, sigma: float, mean: float, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._sigma, self._mean = sigma, mean

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> float:
        from openai import AsyncOpenAI

        reward = float(self._random.random())
        await asyncio.sleep(self._mean * float(log_normal(self._random, self._sigma, (1, 1))[0, 0]))
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        messages: Any = [{"role": "user", "content": data["question"]}]
        await client.chat.completions.create(model="m", messages=messages, max_tokens=2)
        return reward


class Clocked(PlainReporter):
    """Remembers when the run began to wait for episodes, and when to learn from them."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.waits: list[float] = []
        self.learns: list[float] = []

    def activity_started(self, name: str, episodes: int | None = None) -> None:
        if name == "rolling out":
            self.waits.append(time.perf_counter())
        elif name == "learning":
            self.learns.append(time.perf_counter())
        elif self.waits and len(self.waits) == len(self.learns):  # Saving, at the end.
            self.waits.append(time.perf_counter())
        super().activity_started(name, episodes)


def measured(agent: Any, bound: StalenessBound, size: int, steps: int, workers: int) -> tuple[float, Load]:
    """Seconds that a run of ``agent`` takes, and what its episodes and its steps took."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            None,
            f"run.dir={folder}",
            "run.name=run",
            "tasks.train=arithmetic",
            "tasks.eval=null",
            f"rollout.max_staleness={bound.max_staleness}",
            f"rollout.group_size={size}",
            f"rollout.tasks_per_step={bound.per_step}",
            f"rollout.concurrency={workers}",
            f"training.steps={steps}",
            "training.checkpoint_every=0",
            environ={},
        )
        reporter = Clocked()
        with Trainer(config, reporter=reporter) as trainer:
            trainer.train(agent)
        seconds = np.zeros((steps * bound.per_step, size))
        for row in open_run(Path(folder) / "run").episodes(phase="train"):
            seconds[row.key.group, row.key.sample % size] = row.seconds
    learner = [end - begin for begin, end in zip(reporter.learns, reporter.waits[1:], strict=False)]
    return reporter.waits[steps] - reporter.waits[0], Load(bound, size, workers, seconds, learner)


def compare(steps: int) -> None:
    print("\n   sigma   K   real s a step   simulated   real / simulated")
    for max_staleness, sigma in itertools.product((0, *BOUNDS), (0.5, 1.0)):
        sleeper, bound = Sleeper(sigma, MEAN_S, seed=max_staleness), StalenessBound(max_staleness, 4)
        took, load = measured(sleeper, bound, 4, steps, workers=bound.slots * 4)
        result = simulate(load)
        ratio = took / result.seconds
        print(f"{sigma:8}{max_staleness:4}{took / steps:16.3f}{result.seconds / steps:12.3f}{ratio:19.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real-steps", type=int, default=10, help="0 leaves the real loop out")
    options = parser.parse_args()
    if options.workers:
        print("workers crowd  sigma   K per step   learner   rollout staleness simulated   of it     us")
    for workers in options.workers:
        simulated(workers, options.steps, options.seed)
    if options.real_steps:
        compare(options.real_steps)


if __name__ == "__main__":
    main()
