"""Wall time to the same number of episodes, by turns and beside the learner, of an agent whose tools wait.

    python -m tests.benchmarks.waiting [--steps 30] [--sigma 1.0] [--rounds 3]

The agent makes a call, waits as for a tool, and makes another call, on the bundled model in groups of 8, 8 of them a
step. The waits are log-normal with a mean equal to what the learner takes for a step, which is measured first. *Bound*
is what no schedule can beat: the largest of the learner's time, the workers' if none ever idles, and the best
schedule's within the bound on staleness (see ``staleness``), all from the times that the run itself measured; *of it*
is that over the wall time. To reach: 0.95 with ``rollout.max_staleness=1``.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from typing import Any

import numpy as np
from tests.benchmarks.simulation import Load, fastest
from tests.benchmarks.staleness import log_normal, measured

from agentrl.rollout.staleness import StalenessBound

SIZE, PER_STEP = 8, 8


class ToolUser:
    """Calls, waits, and calls again; its reward is random, so that every group teaches something."""

    def __init__(self, sigma: float, mean: float) -> None:
        self._random = np.random.default_rng(0)
        self._sigma, self._mean = sigma, mean

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> float:
        from openai import AsyncOpenAI

        reward = float(self._random.random())
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        messages: list[Any] = [{"role": "user", "content": data["question"]}]
        reply = await client.chat.completions.create(model="m", messages=messages, max_tokens=8)
        await asyncio.sleep(self._mean * float(log_normal(self._random, self._sigma, (1, 1))[0, 0]))
        messages += [reply.choices[0].message, {"role": "user", "content": "Are you sure?"}]
        await client.chat.completions.create(model="m", messages=messages, max_tokens=8)
        return reward


def bound_of(load: Load) -> float:
    return max(sum(load.learner), float(load.seconds.sum()) / load.workers, fastest(load))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sigma", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    workers = 2 * PER_STEP * SIZE
    _, without = measured(ToolUser(given.sigma, 0.0), StalenessBound(0, PER_STEP), SIZE, 10, workers)
    mean = statistics.median(without.learner)
    print(f"a step takes the learner {1000 * mean:.0f} ms, and a tool waits as long on average")
    print("K   ms a step   bound   of it   learner   episode")
    walls: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(given.rounds):
        for max_staleness, taken in walls.items():
            bound = StalenessBound(max_staleness, PER_STEP)
            wall, load = measured(ToolUser(given.sigma, mean), bound, SIZE, given.steps, workers)
            taken.append(wall)
            step, least = 1000 * wall / given.steps, 1000 * bound_of(load) / given.steps
            learner, episode = 1000 * statistics.fmean(load.learner), 1000 * float(load.seconds.mean())
            print(f"{max_staleness}{step:12.1f}{least:8.1f}{least / step:8.3f}{learner:10.1f}{episode:10.1f}")
    ratio = statistics.median(walls[1]) / statistics.median(walls[0])
    print(f"the same episodes take {ratio:.2f} times as long with max_staleness=1 as by turns")


if __name__ == "__main__":
    main()
