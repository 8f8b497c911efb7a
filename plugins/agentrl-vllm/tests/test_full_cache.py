"""A run whose completions do not fit into the server's KV cache together."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import BadRequestError
from real import KEYS
from servers import children
from training_runs import VLLM, run, untrained_model

from agentrl_agents.math import MathAgent

pytestmark = pytest.mark.real

CACHE_BYTES = 18 * 32 * 1024
"""Of a model like ``tiny``: 576 tokens, of which the completions of a step want several times as many."""
A_STEP = 16
"""Episodes."""
TOO_LONG = "1 + " * 200


@dataclass
class Asking:
    """Asks as the agent ``math`` does, and calls every other answer right.

    One episode asks first what is longer than the cache, and a later one looks at the server.
    """

    begun: int = 0
    refused: list[str | None] = field(default_factory=list)
    preempted: float = 0.0
    others: set[psutil.Process] = field(default_factory=children)
    """Processes that are not of the run."""

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> float:
        self.begun += 1
        connection = {"base_url": base_url, "api_key": api_key, "http_client": http_client}
        if self.begun == 1:
            try:
                await MathAgent().run({**data, "question": TOO_LONG}, **connection)
            except BadRequestError as error:
                self.refused.append(error.code)
        if self.begun == A_STEP + 1:
            self.preempted = await preemptions(children() - self.others)
        number = self.begun
        await MathAgent().run(data, **connection)
        return number % 2


async def preemptions(processes: set[psutil.Process]) -> float:
    """How often the one server among ``processes`` has taken a completion's blocks from it."""
    commands = [process.cmdline() for process in processes]
    (command,) = (each for each in commands if "--port" in each and "supervisor.py" not in " ".join(each))
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        text = (await client.get(f"http://127.0.0.1:{command[command.index('--port') + 1]}/metrics")).text
    return sum(map(float, re.findall(r"^vllm:num_preemptions_total{.*} (\S+)$", text, re.M)))


def test_a_full_cache_delays_completions_and_changes_none_of_them(tiny_model: Path, tmp_path: Path) -> None:
    agent = Asking()
    backend = {"name": VLLM, **KEYS, "kv_cache_bytes": CACHE_BYTES, "args": ["--block-size", "32"]}
    model = untrained_model(tiny_model, tmp_path / "model", layers=2)
    settings = (f"model={model}", "tasks.eval=null", "rollout.tasks_per_step=2", "training.steps=2")
    ended = run(tmp_path / "run", agent, backend, *settings)
    assert ended.error is None
    assert agent.preempted > 0
    assert ended.once_each
    assert ended.exact
    assert agent.refused == ["context_length_exceeded"]
