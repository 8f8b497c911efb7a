"""An evaluation has the rollout to itself, or episodes of training run beside it; it is of one version either way."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter

import pytest

from agentrl import Trainer, load_config, open_run
from agentrl.reporting.plain import PlainReporter


class Watched:
    """Asks once, and knows which kinds of tasks have been in work at the same time."""

    def __init__(self) -> None:
        self.active: Counter[str] = Counter()
        self.met = False

    async def run(self, data, *, base_url, api_key, http_client):
        from openai import AsyncOpenAI

        self.active[data["kind"]] += 1
        try:
            self.met |= len(+self.active) == 2
            client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
            messages = [{"role": "user", "content": data["question"]}]
            reply = await client.chat.completions.create(model="m", messages=messages, max_tokens=4)
            await asyncio.sleep(0.01)
            return float(len(reply.choices[0].message.content or ""))
        finally:
            self.active[data["kind"]] -= 1


@pytest.mark.parametrize(
    ("staleness", "overlap", "meet"), [(0, False, False), (0, True, True), (1, False, False), (1, True, True)]
)
def test_an_evaluation_runs_beside_training_only_where_it_may(tmp_path, staleness, overlap, meet):
    for kind in ("train", "held-out"):
        rows = [{"question": f"What is {number} + 1?", "kind": kind} for number in range(8)]
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(
        None,
        f"run.dir={tmp_path}",
        "run.name=run",
        f"tasks.train={tmp_path}/train.jsonl",
        f"tasks.eval={tmp_path}/held-out.jsonl",
        f"rollout.max_staleness={staleness}",
        "rollout.tasks_per_step=2",
        "rollout.group_size=2",
        f"evaluation.overlap={str(overlap).lower()}",
        "evaluation.every=1",
        "training.steps=4",
        environ={},
    )
    agent = Watched()
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        assert trainer.train(agent).outcome == "completed"
    assert agent.met is meet
    run = open_run(tmp_path / "run")
    assert [line.step for line in run.evaluations()] == list(range(5))
    assert [line.step for line in run.metrics() if line.step] == [1, 1, 2, 2, 3, 3, 4, 4]
    for step in range(5):
        for episode in run.load_episodes(phase="eval", version=step):
            spans = [span.sampled for span in episode.tree.spans if span.sampled is not None]
            assert {version for span in spans for version in span.versions} == {step}
    assert run.count(phase="train") == 4 * 2 * 2
    assert run.count(outcome="failed") == 0
