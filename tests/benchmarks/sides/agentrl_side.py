"""The training-step benchmark's one side: ``agentrl train math``, in the reporter's pace.

CPU is split without a profiler. The engine and the episode store have threads of their own, whose clocks are read.
The event loop's thread is split by coroutine: what an agent's ``run`` spends is the clients', less what its
HTTP client's transport spends, which is the gateway's; the rest of the thread is the rollout's and the loop's.
What no other thread has spent is the learner's.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from tests.benchmarks.sides.meter import Metered, thread_seconds
from tests.benchmarks.sides.pace import Pace, Workload

from agentrl import Trainer, load_config
from agentrl.gateway.transport import Transport
from agentrl.reporting.plain import PlainReporter
from agentrl.runs.contract import RunInfo
from agentrl_agents import math
from agentrl_agents.math import MathAgent

__all__ = ["run"]

_spent: defaultdict[str, float] = defaultdict(float)


class MeteredMathAgent(MathAgent):
    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> float:
        run = super().run(data, base_url=base_url, api_key=api_key, http_client=http_client)
        await Metered(run, "agents", _spent)
        return random.random()


def run(workload: Workload, parent: Connection) -> None:
    """Train as ``workload`` says, in the pace that ``parent`` sets."""
    _meter_gateway()
    math.SYSTEM = workload.system(math.SYSTEM)
    with tempfile.TemporaryDirectory() as runs, open(os.devnull, "w") as nowhere:
        config = load_config(
            None,
            f"run.dir={runs}",
            f"seed={workload.seed}",
            f"model={workload.model}",
            "tasks.train=arithmetic",
            "tasks.eval=null",
            f"rollout.tasks_per_step={workload.groups}",
            f"rollout.group_size={workload.group_size}",
            f"rollout.concurrency={workload.groups * workload.group_size}",
            f"rollout.max_tokens={workload.max_tokens}",
            f"rollout.max_staleness={workload.max_staleness}",
            f"training.steps={workload.steps}",
            f"training.learning_rate={workload.learning_rate}",
            # Between blocks the event loop waits for the other sides, which is no fault of the agent's.
            "rollout.episode_timeout=86400",
            "training.checkpoint_every=0",
            *workload.keys,
        )
        with Trainer(config, reporter=_Paced(nowhere, Pace(workload, parent))) as trainer:
            trainer.train(agent=MeteredMathAgent)


def _meter_gateway() -> None:
    answer = Transport.handle_async_request

    async def metered(self: Transport, request: Any) -> Any:
        return await Metered(answer(self, request), "gateway", _spent)

    Transport.handle_async_request = metered  # type: ignore[method-assign]


class _Paced(PlainReporter):
    """Plain lines, and between blocks a wait."""

    def __init__(self, stream: Any, pace: Pace) -> None:
        super().__init__(stream)
        self._pace = pace
        self._stages: defaultdict[str, float] = defaultdict(float)
        pace.parts = self._parts

    def run_started(self, run: RunInfo) -> None:
        super().run_started(run)
        self._pace.begin()

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        super().step_finished(step, metrics)
        for stage in ("rollout", "learner", "weights"):
            self._stages[f"wall {stage}"] += metrics[f"seconds/{stage}"]
        self._pace.step(metrics["tokens/completion"] / metrics["rollout/calls"])

    def _parts(self) -> dict[str, float]:
        threads = thread_seconds()
        loop, engine, store = (threads[name] for name in ("MainThread", "agentrl-engine", "episode-store"))
        return {
            "clients": _spent["agents"] - _spent["gateway"],
            "gateway": _spent["gateway"],
            "engine": engine,
            "learner": time.process_time() - loop - engine - store,
            "store": store,
            "rollout": loop - _spent["agents"],
            **self._stages,
        }
