"""Throughput of the training loop, simulated, beside what bounds it; and the real loop beside its simulation.

    python -m tests.benchmarks.staleness [--workers 100 1000 10000] [--steps 60] [--seed 0]

No loop is faster than its learner, than its workers if none ever idles, and than the best schedule within its staleness
bound if every episode had a worker (``fastest`` in ``simulation.py``). Each table row is a load of which the first two
bounds are equal, which is the hardest: an ideal worker would never wait, and neither would the learner. Episodes are
log-normal with a mean of 1 second, in groups of 8; a step takes half as many of them as there are workers. *Of the
bound* is the largest of the three beside what the simulated loop takes. *us* is the CPU time that an event costs in the
simulation, rule and buffer included: it should not grow with the number of workers.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from tests.benchmarks.simulation import Load, fastest, simulate

from agentrl.rollout.staleness import StalenessBound

GROUP_SIZE = 8
SIGMAS = (0.5, 1.0, 1.5)
BOUNDS = (0, 1, 2, 4)


def balanced(sigma: float, max_staleness: int, workers: int, steps: int, seed: int) -> Load:
    """A load whose learner takes as long for a step as its workers if none of them idles."""
    per_step = max(1, workers // (2 * GROUP_SIZE))
    random = np.random.default_rng(seed)
    shape = (per_step * steps, GROUP_SIZE)
    seconds = random.lognormal(-sigma * sigma / 2, sigma, shape)
    learner = per_step * GROUP_SIZE / workers
    return Load(StalenessBound(max_staleness, per_step), GROUP_SIZE, workers, seconds, [learner] * steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("                       seconds a step                                            ")
    print("sigma  K workers  learner  rollout staleness simulated  of the bound   us an event")
    for workers in options.workers:
        for sigma in SIGMAS:
            for max_staleness in BOUNDS:
                load = balanced(sigma, max_staleness, workers, options.steps, options.seed)
                bounds = [sum(load.learner), load.seconds.sum() / workers, fastest(load)]
                began = time.process_time()
                result = simulate(load)
                cost = 1e6 * (time.process_time() - began) / result.events
                learner, rollout, staleness, took = (each / options.steps for each in (*bounds, result.seconds))
                print(
                    f"{sigma:5} {max_staleness:2} {workers:7} {learner:8.3f} {rollout:8.3f} {staleness:9.3f}"
                    f" {took:9.3f} {max(bounds) / result.seconds:13.3f} {cost:13.1f}"
                )


if __name__ == "__main__":
    main()
