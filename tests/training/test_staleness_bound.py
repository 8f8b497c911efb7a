"""Episodes far longer than others, in real runs: no token is trained beyond the bound, and no group goes missing."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter

import pytest

from agentrl import Trainer, load_config, open_run
from agentrl.learner.learner import Learner
from agentrl.reporting.plain import PlainReporter
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.folder import RunFolder

PER_STEP, GROUP, STEPS = 2, 2, 8
MEDIAN_S, THIRTY_TIMES_THE_MEDIAN_S = 0.01, 0.3
LONG_ENOUGH_S = 20.0


class Versions(PlainReporter):
    """Knows how many steps are done."""

    done = 0

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self._reached = [asyncio.Event() for _ in range(STEPS + 1)]

    def step_finished(self, step, metrics):
        self.done = step
        self._reached[step].set()
        super().step_finished(step, metrics)

    async def after(self, step):
        async with asyncio.timeout(LONG_ENOUGH_S):
            await self._reached[step].wait()


class Uneven:
    """Two calls with a pause between them, which lasts until ``steps`` more steps are done in two of the episodes.

    Then it lasts ``pause`` seconds more.
    """

    def __init__(self, versions: Versions, steps: int, pause: float, slow: tuple[int, ...]) -> None:
        self._versions, self._steps, self._pause, self._slow = versions, steps, pause, slow
        self._begun = 0
        self.lasted: list[int] = []
        """How many steps were done meanwhile, for each of the slow ones."""

    async def run(self, data, *, base_url, api_key, http_client):
        from openai import AsyncOpenAI

        number, begun = self._begun, self._versions.done
        self._begun += 1
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        messages = [{"role": "user", "content": data["question"]}]
        reply = await client.chat.completions.create(model="m", messages=messages, max_tokens=2)
        messages.append(reply.choices[0].message.model_dump(include={"role", "content"}))
        messages.append({"role": "user", "content": "And then?"})
        await asyncio.sleep(MEDIAN_S)
        if number in self._slow:
            await self._versions.after(begun + self._steps)
            await asyncio.sleep(self._pause)
            self.lasted.append(self._versions.done - begun)
        await client.chat.completions.create(model="m", messages=messages, max_tokens=2)
        return float(number)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train with two slow episodes; returns the run, the agent, and the versions of the tokens in each step's loss."""
    in_loss: list[list[int]] = []
    step = Learner.step

    def watched(learner, batch):
        in_loss.append(batch.version.tolist())
        return step(learner, batch)

    monkeypatch.setattr(Learner, "step", watched)

    def train(max_staleness, on_stale, steps, pause=0.0):
        rows = [{"question": f"What is {number} + 1?"} for number in range(32)]
        (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = load_config(
            None,
            f"run.dir={tmp_path}",
            "run.name=run",
            f"tasks.train={tmp_path}/tasks.jsonl",
            "tasks.eval=null",
            f"rollout.max_staleness={max_staleness}",
            f"rollout.on_stale={on_stale}",
            f"rollout.tasks_per_step={PER_STEP}",
            f"rollout.group_size={GROUP}",
            f"training.steps={STEPS}",
            "training.checkpoint_every=0",
            environ={},
        )
        versions = Versions()
        agent = Uneven(versions, steps, pause, slow=(1, (max_staleness + 1) * PER_STEP * GROUP))
        with Trainer(config, reporter=versions) as trainer:
            assert trainer.train(agent).outcome == "completed"
        return open_run(tmp_path / "run"), agent, in_loss

    return train


def sampled_versions(episode):
    return [version for span in episode.tree.spans if span.sampled is not None for version in span.sampled.versions]


def memberships(run):
    return EpisodeReader(RunFolder(run.path).episodes).memberships()


def every_group_is_in_the_ledger(run):
    """Whatever was generated was trained, left out or dropped, and counted as that, once; or it is in no step yet."""
    kept = Counter(episode.key.group for episode in run.load_episodes(phase="train"))
    taken: Counter[int] = Counter()
    for membership in memberships(run):
        for ordinals in (membership.trained, membership.left_out, membership.stale):
            taken.update(dict.fromkeys(ordinals, GROUP))
    counted = sum(line.metrics["ledger/received"] for line in run.steps())
    assert counted == taken.total()
    assert not taken - kept
    ledger = run.summary.ledger
    assert ledger["received"] - ledger["unfinished"] == counted
    assert ledger["unfinished"] >= (kept - taken).total()


@pytest.mark.parametrize("max_staleness", [1, 2, 4])
def test_the_learner_waits_for_the_slowest_and_trains_every_group_within_the_bound(train, max_staleness):
    run, agent, in_loss = train(max_staleness, "wait", steps=max_staleness, pause=THIRTY_TIMES_THE_MEDIAN_S)
    assert agent.lasted == [max_staleness, max_staleness]
    assert [version - min(versions) for version, versions in enumerate(in_loss)][max_staleness] == max_staleness
    assert max(version - min(versions) for version, versions in enumerate(in_loss)) == max_staleness
    for episode in run.load_episodes(phase="train"):
        assert episode.trained_step - 1 - min(sampled_versions(episode)) <= max_staleness
    assert run.summary.ledger["stale"] == 0
    assert run.count(phase="train") == STEPS * PER_STEP * GROUP
    every_group_is_in_the_ledger(run)


def test_masked_tokens_are_counted_and_the_rest_of_their_episodes_trains(train):
    run, agent, in_loss = train(1, "mask", steps=3)
    assert min(agent.lasted) >= 3
    assert max(version - min(versions) for version, versions in enumerate(in_loss)) <= 1
    old = new = wholly = 0
    for episode in run.load_episodes(phase="train"):
        too_old = [episode.trained_step - 1 - version > 1 for version in sampled_versions(episode)]
        old, new, wholly = old + sum(too_old), new + too_old.count(False), wholly + all(too_old)
    assert old
    assert sum(line.metrics["tokens/stale"] for line in run.steps()) == old
    assert sum(line.metrics["tokens/trained"] for line in run.steps()) == new == sum(map(len, in_loss))
    assert run.summary.ledger["stale"] == wholly
    every_group_is_in_the_ledger(run)


def test_a_dropped_group_is_counted_and_its_task_comes_again(train):
    run, agent, in_loss = train(1, "drop", steps=2)
    assert min(agent.lasted) >= 2
    assert max(version - min(versions) for version, versions in enumerate(in_loss)) <= 1
    dropped = [ordinal for membership in memberships(run) for ordinal in membership.stale]
    assert dropped
    assert run.summary.ledger["stale"] == GROUP * len(dropped)
    samples = {ordinal: [] for ordinal in dropped}
    for episode in run.load_episodes(phase="train"):
        if episode.key.group in samples:
            samples[episode.key.group].append(episode.key.sample)
    assert all(len(set(each)) == len(each) for each in samples.values())
    assert any(len(each) == 2 * GROUP for each in samples.values()), "nothing has come again before the end"
    every_group_is_in_the_ledger(run)
