"""Whole runs on the bundled model: what they leave behind, however they end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sqlite3
import threading
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentrl import Trainer, load_config, open_run
from agentrl.errors import ConfigError, RunError
from agentrl.reporting.plain import PlainReporter
from agentrl.runs.folder import RunFolder

AGENTS = ["math", *(pytest.param(name, marks=pytest.mark.long) for name in ("multi_turn_math", "calculator"))]
BRIEF = (
    "tasks.train=arithmetic",
    "tasks.eval=arithmetic-heldout",
    "evaluation.tasks=16",
    "evaluation.every=0",
    "training.checkpoint_every=0",
)


PARTED = """
from openai import AsyncOpenAI
from agentrl import Reward

async def agent(data, *, base_url, api_key, http_client):
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages = [{"role": "user", "content": data["question"]}]
    reply = await client.chat.completions.create(model="m", messages=messages)
    right = data["answer"] in (reply.choices[0].message.content or "")
    return Reward(right, right=right, long=1)
"""


@pytest.fixture
def train(tmp_path):
    """Train with the defaults, briefly, in a fresh run folder; returns it and the summary."""

    def train(agent, *settings, name="run", reporter=None, plugins=None):
        config = load_config(None, f"run.dir={tmp_path}", f"run.name={name}", *BRIEF, *settings, environ={})
        with Trainer(config, reporter=reporter or PlainReporter(io.StringIO()), plugins=plugins) as trainer:
            summary = trainer.train(agent)
        return RunFolder(tmp_path / name), summary

    return train


@pytest.mark.parametrize("agent", AGENTS)
def test_every_bundled_agent_learns(train, agent):
    _, summary = train(agent, "training.steps=15", "evaluation.tasks=48")
    assert summary.outcome == "completed"
    assert summary.reward_after > summary.reward_before + 0.1
    assert summary.reward_after_greedy > summary.reward_before_greedy + 0.1


def test_a_run_leaves_its_config_metrics_episodes_checkpoint_and_summary(train):
    folder, summary = train("math", "training.steps=2", "rollout.tasks_per_step=2", "rollout.group_size=3", "seed=5")
    assert load_config(folder.config, environ={}).seed == 5
    rows = open_run(folder.path).metrics()
    assert [row.step for row in rows] == [0, 1, 2, 2]
    for name in ("reward/mean", "policy/entropy", "policy/clip_fraction", "policy/mismatch_kl", "seconds/rollout"):
        assert name in rows[1].metrics
    trained = list(open_run(folder.path).load_episodes(phase="train"))
    assert len(trained) == 2 * 2 * 3
    assert Counter((e.key.group, e.version, e.trained_step) for e in trained) == Counter(
        {(0, 0, 1): 3, (1, 0, 1): 3, (2, 1, 2): 3, (3, 1, 2): 3}
    )
    held_out = sorted({e.key.group for e in open_run(folder.path).load_episodes(phase="eval", version=2)})
    assert [group - held_out[0] for group in held_out] == list(range(16))
    assert {e.trained_step for e in open_run(folder.path).load_episodes(phase="eval")} == {None}
    assert all(episode.calls and len(episode.tree) for episode in trained)
    assert len(list(open_run(folder.path).load_episodes())) == summary.episodes == 12 + 2 * 2 * 16
    assert json.loads(folder.summary.read_text()) == summary.to_json()
    assert {"reward_before", "reward_after", "steps", "episodes", "tokens", "seconds", "checkpoint", "outcome"} <= set(
        summary.to_json()
    )


def test_a_checkpoint_is_a_folder_that_transformers_loads(train, tiny_folder):
    _, summary = train("math", "training.steps=1", "rollout.tasks_per_step=2")
    model = AutoModelForCausalLM.from_pretrained(summary.checkpoint)
    before = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    assert any(not torch.equal(new, old) for new, old in zip(model.parameters(), before.parameters(), strict=True))
    tokenizer = AutoTokenizer.from_pretrained(summary.checkpoint)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_folder).chat_template


def test_a_checkpoint_measures_again_what_it_measured(train, tmp_path):
    folder, summary = train("math", "training.steps=2", "rollout.tasks_per_step=2")
    config = load_config(folder.config, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        again = trainer.evaluate(summary.checkpoint)
    assert (again.sampled, again.greedy) == (summary.reward_after, summary.reward_after_greedy)


def test_equal_seeds_sample_equal_episodes_and_other_seeds_do_not(train):
    def sampled(name, seed):
        small = ("training.steps=3", "rollout.tasks_per_step=2", "tasks.eval=null")
        folder, _ = train("math", *small, f"seed={seed}", name=name)
        episodes = {
            str(e.key): (e.data, [s.ids for s in e.tree.spans], e.reward) for e in open_run(folder.path).load_episodes()
        }
        return episodes, [row.metrics["policy/grad_norm"] for row in open_run(folder.path).metrics()]

    episodes, norms = sampled("a", 3)
    again, norms_again = sampled("b", 3)
    assert again == episodes
    assert norms_again == pytest.approx(norms, rel=1e-3)
    assert sampled("c", 4)[0] != episodes


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("agent", AGENTS)
def test_at_learning_rate_zero_sampler_and_learner_agree(train, agent, temperature):
    """In a few steps; `make acceptance` trains every bundled agent like this for longer."""
    settings = ("training.learning_rate=0", "training.steps=8", "rollout.tasks_per_step=2", "tasks.eval=null")
    folder, _ = train(agent, *settings, f"rollout.temperature={temperature}")
    rows = open_run(folder.path).metrics()
    assert len(rows) == 8
    assert all(abs(row.metrics["policy/ratio_mean"] - 1) <= 1e-3 for row in rows)
    assert all(abs(row.metrics["policy/mismatch_kl"]) < 1e-4 for row in rows)


class Watcher(PlainReporter):
    """Does something once a step has ended."""

    def __init__(self, step, act):
        super().__init__(io.StringIO())
        self.step, self.act, self.warnings, self.notes = step, act, [], []

    def step_finished(self, step, metrics):
        if step == self.step:
            self.act()

    def warning(self, text):
        self.warnings.append(text)

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_what_was_learned(train, number):
    watcher = Watcher(2, lambda: os.kill(os.getpid(), number))
    small = ("training.steps=50", "rollout.tasks_per_step=2", "tasks.eval=null")
    folder, summary = train("math", *small, reporter=watcher)
    assert (summary.outcome, summary.steps) == ("interrupted", 2)
    assert summary.checkpoint == str(folder.checkpoint(2))
    AutoModelForCausalLM.from_pretrained(summary.checkpoint)
    assert json.loads(folder.summary.read_text())["outcome"] == "interrupted"
    assert "saving what was learned" in watcher.notes[-2]
    assert ("Ctrl-C again" in watcher.notes[-2]) == (number == signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failure_saves_what_was_learned_and_says_why(train, tmp_path):
    calls = iter(range(10**6))

    async def breaks(data, *, base_url, api_key, http_client):
        from openai import AsyncOpenAI

        if next(calls) >= 16:
            raise ValueError("no database")
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": data["question"]}])
        return 1.0

    with pytest.raises(
        RunError, match=r"of the last 16 episodes failed.*ValueError: no database.*rollout\.failure_budget"
    ):
        train(breaks, "training.steps=5", "tasks.eval=null", "rollout.tasks_per_step=2")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["outcome"].startswith("failed: ")
    assert "no database" in summary["outcome"]
    assert summary["steps"] == 1
    AutoModelForCausalLM.from_pretrained(summary["checkpoint"])


def test_an_agent_that_calls_another_endpoint_is_told_so(train):
    async def elsewhere(data):
        return 1.0

    with pytest.raises(RunError, match=r"no episode of step 1 made a call through its session.*base_url"):
        train(elsewhere, "training.steps=1", "tasks.eval=null")


def test_an_agent_that_blocks_the_loop_is_named_while_it_runs(train):
    import time

    async def blocks(data, *, base_url, api_key, http_client):
        from openai import AsyncOpenAI

        time.sleep(2.6)  # noqa: ASYNC251 - blocking is what is tested
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": data["question"]}])
        return 1.0

    watcher = Watcher(-1, lambda: None)
    small = ("training.steps=1", "tasks.eval=null", "rollout.tasks_per_step=1", "rollout.group_size=2")
    train(blocks, *small, reporter=watcher)
    warning = watcher.warnings[0]
    assert "agent 'blocks' has blocked the event loop" in warning
    assert "test_run.py" in warning
    assert "rollout.mode=subproc" in warning


def test_a_run_folder_that_exists_is_refused_and_left_alone(train, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match=r"run exists already.*run\.name"):
        train("math", "training.steps=1")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_trainer_works_inside_a_running_event_loop(train):
    """As in a notebook, whose cells run in one."""
    import asyncio

    async def cell():
        small = ("training.steps=1", "tasks.eval=null", "rollout.tasks_per_step=2", "rollout.group_size=2")
        return train("math", *small)[1]

    assert asyncio.run(cell()).outcome == "completed"


def test_no_thread_outlives_a_run(train):
    before = set(threading.enumerate())
    train("math", "training.steps=1", "tasks.eval=null", "rollout.tasks_per_step=2")
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(5.0)  # One that has been told to end has a moment for it.
    assert {thread.name for thread in left if thread.is_alive()} == set()


@pytest.mark.parametrize("settings", [("agent.kwargs.reward=0",), ("agent.kwargs.reward=null",)])
def test_a_run_that_cannot_learn_says_so(train, settings):
    async def indifferent(data, *, base_url, api_key, http_client, reward=0.0):
        from openai import AsyncOpenAI

        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": data["question"]}])
        return reward

    watcher = Watcher(-1, lambda: None)
    small = ("training.steps=2", "tasks.eval=null", "rollout.tasks_per_step=2", "rollout.group_size=2")
    train(indifferent, *small, *settings, reporter=watcher)
    warning = watcher.warnings[-1]
    assert "nothing was learned up to step 2" in warning
    assert ("rollout.group_size" in warning) == (settings == ("agent.kwargs.reward=0",))


def test_a_step_whose_episodes_were_all_rejected_says_so(train):
    async def picky(data, *, base_url, api_key, http_client):
        from openai import AsyncOpenAI

        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": data["question"]}])

    watcher = Watcher(-1, lambda: None)
    small = ("training.steps=2", "tasks.eval=null", "rollout.tasks_per_step=2", "rollout.group_size=2")
    train(picky, *small, reporter=watcher)
    assert watcher.warnings[0].startswith("health: no_update: step 1 changed nothing: the agent rejected every episode")


@pytest.mark.parametrize("mode", ["inline", "subproc"])
def test_the_parts_of_rewards_are_logged_and_stored(train, tmp_path, mode):
    (tmp_path / "parted.py").write_text(PARTED)
    small = ("training.steps=1", "rollout.tasks_per_step=2", "rollout.group_size=2", "evaluation.tasks=2")
    folder, _ = train(f"{tmp_path}/parted.py:agent", *small, f"rollout.mode={mode}")
    before, step = (line.metrics for line in open_run(folder.path).metrics()[:2])
    assert step["reward/parts/long"] == before["evaluation/parts/long"] == 1.0
    assert 0.0 <= step["reward/parts/right"] <= 1.0
    with contextlib.closing(sqlite3.connect(folder.episodes)) as store:
        filtered = "SELECT count(*) FROM episodes WHERE json_extract(reward_parts, '$.long') > 0.5"
        (count,) = store.execute(filtered).fetchone()
    assert count == len(list(open_run(folder.path).load_episodes()))
    (parts,) = {tuple(episode.reward_parts) for episode in open_run(folder.path).load_episodes()}
    assert parts == ("right", "long")
