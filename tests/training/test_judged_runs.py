"""Whole runs that a judge rewards: agents in workers, stale groups, a run that is resumed, and Ctrl-C meanwhile."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.rewards.scripted_judge import Reply, ScriptedJudge, ranked, scored, shown

from agentrl import Trainer, load_config, open_run
from agentrl.errors import ConfigError, RunError
from agentrl.reporting.plain import PlainReporter
from agentrl.rollout.contract import Episode
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.folder import RunFolder

AGENT = """
from openai import AsyncOpenAI
from agentrl_agents.math import SYSTEM


async def agent(data, *, base_url, api_key, http_client):
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": data["question"]}]
    reply = await client.chat.completions.create(model="policy", messages=messages, max_tokens=24)
    return reply.choices[0].message.content


agent.returns_answer = True
"""
PRICES = "prices={currency: EUR, tokens: {wise: {prompt: 2, completion: 4}, judge: {prompt: 9}}}"
BRIEF = (
    *("training.steps=2", "rollout.tasks_per_step=2", "rollout.group_size=4", "evaluation.tasks=4"),
    *("evaluation.every=0", "training.checkpoint_every=1"),
)


def wise(body: dict[str, Any]) -> Reply:
    """Ranks by length, scores 3, and gives no verdict on an answer that holds a 7."""
    material = shown(body)
    if "7" in json.dumps(material.get("answer", "")):
        return Reply("no verdict")
    if "answers" not in material:
        return scored(3)
    answers = material["answers"]
    return ranked(*([int(number)] for number in sorted(answers, key=lambda number: len(answers[number]))))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[ScriptedJudge]:
    with ScriptedJudge(wise) as judge:
        yield judge


def reward_of(endpoint: ScriptedJudge, **keys: Any) -> str:
    judge = {"rubric": "Brief.", "model": "wise", "url": endpoint.url, "max_retries": 0, **keys}
    ranked_judge = {"name": "ranked-judge", "weight": 0.5, **judge}
    return json.dumps({"name": "sum", "parts": {"brief": ranked_judge, "right": "numeric-match"}})


def trained(folder: Path, reward: str, *settings: str) -> Any:
    (folder / "mine.py").write_text(AGENT)
    config = load_config(None, f"run.dir={folder}", "run.name=run", f"reward={reward}", *BRIEF, *settings, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        return trainer.train(f"{folder / 'mine.py'}:agent")


def episodes(folder: Path, phase: str) -> list[Episode]:
    return list(EpisodeReader(RunFolder(folder / "run").episodes).load(phase=phase))  # type: ignore[arg-type]


def test_a_judged_run_learns_from_ranks_in_workers_and_at_staleness_above_0(
    endpoint: ScriptedJudge, tmp_path: Path
) -> None:
    settings = ("rollout.mode=subproc", "rollout.max_workers=1", "rollout.max_staleness=2", "rollout.concurrency=6")
    summary = trained(tmp_path, reward_of(endpoint), *settings)
    assert summary.outcome == "completed"
    groups: dict[int, list[Episode]] = {}
    for episode in episodes(tmp_path, "train"):
        groups.setdefault(episode.key.group, []).append(episode)
    whole = [group for group in groups.values() if len(group) == 4]
    assert len(whole) >= 4
    for group in whole:
        compared = [episode for episode in group if episode.outcome == "rewarded"]
        assert sum(each.reward_parts["brief"] for each in compared) == pytest.approx(len(compared) / 2)
        assert all(
            each.reward == pytest.approx(0.5 * each.reward_parts["brief"] + each.reward_parts["right"])
            for each in compared
        )
    judged = [episode for episode in episodes(tmp_path, "eval") if episode.outcome == "rewarded"]
    assert {episode.reward_parts["brief"] for episode in judged} <= {0.3}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("reward/parts/brief" in line.get("metrics", line) for line in lines)
    # An evaluation, whose answers are scored one by one, has a cost of its own.
    cost, alone = open_run(tmp_path / "run").cost, [body for body in endpoint.requests if "answer" in shown(body)]
    assert cost.usage("judge", "evaluation").requests == len(alone)
    of_evaluations = [line for line in lines if "evaluation/reward" in line]
    assert sum(line.get("cost/evaluation/judge/requests", 0) for line in of_evaluations) == len(alone)
    assert not any("cost/rollout/policy/requests" in line for line in of_evaluations)
    sampled = [call for episode in episodes(tmp_path, "eval") for call in episode.calls]
    sampled += [call for episode in episodes(tmp_path, "eval-greedy") for call in episode.calls]
    used = cost.usage("policy", "evaluation")
    assert (used.requests, used.prompt_tokens, used.completion_tokens) == (
        len(sampled),
        sum(call.prompt_tokens for call in sampled),
        sum(call.completion_tokens for call in sampled),
    )
    assert cost.money is None


def test_a_budget_ends_a_run_which_goes_on_with_a_larger_one_and_asks_nothing_twice(
    endpoint: ScriptedJudge, tmp_path: Path
) -> None:
    asked = len(endpoint.requests)
    limited = reward_of(endpoint, budget={"requests": 4})
    with pytest.raises(RunError, match=r"the judge's budget is spent: 4 requests of budget\.requests=4"):
        trained(tmp_path, limited, "tasks.eval=null", PRICES)
    assert len(endpoint.requests) == asked + 4
    first = {episode.key: episode for episode in episodes(tmp_path, "train")}
    larger = f"reward={reward_of(endpoint, budget={'requests': 400})}"
    with Trainer.resume(tmp_path / "run", larger, reporter=PlainReporter(io.StringIO())) as trainer:
        assert trainer.train().outcome == "completed"
    again = {episode.key: episode for episode in episodes(tmp_path, "train")}
    assert {key: again[key].reward for key in first} == {key: episode.reward for key, episode in first.items()}
    questions = [json.dumps(body) for body in endpoint.requests[asked:]]
    assert len(questions) == len(set(questions))
    # What the run cost before it was resumed is part of its cost, and so is every verdict that is none.
    run = open_run(tmp_path / "run")
    judge, policy = run.cost.usage("judge"), run.cost.usage("policy", "rollout")
    assert (judge.requests, judge.unknown) == (len(questions), 0)
    assert (judge.prompt_tokens, judge.completion_tokens) == (90 * len(questions), 10 * len(questions))
    assert run.cost.money_of("judge") == pytest.approx(len(questions) * (90 * 2.0 + 10 * 4.0) / 1e6)
    assert run.summary is not None
    assert run.summary.cost["currency"] == "EUR"
    assert policy.completion_tokens >= sum(call.completion_tokens for each in again.values() for call in each.calls)
    lines = [line.metrics for line in run.metrics()]
    assert sum(line.get("cost/rollout/judge/requests") or 0 for line in lines) == len(questions)
    assert sum(line["cost/seconds"] or 0 for line in lines) < run.cost.seconds
    told = (tmp_path / "run" / "logs" / "run.log").read_text()
    assert f"judge: {len(questions)} requests, {90 * len(questions):,} prompt tokens" in told


def test_a_judge_that_ranks_is_refused_beside_groups_of_one(endpoint: ScriptedJudge, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leaves the reward nothing to compare"):
        trained(tmp_path, reward_of(endpoint), "rollout.group_size=1", "algorithm=reinforce++")


def test_ctrl_c_while_the_judge_thinks_interrupts_the_run(endpoint: ScriptedJudge, tmp_path: Path) -> None:
    asked = len(endpoint.requests)

    def interrupt() -> None:
        while len(endpoint.requests) == asked:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    endpoint.answer = lambda body: Reply(after=60)
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, endpoint, "answer", wise)
        threading.Thread(target=interrupt, daemon=True).start()
        summary = trained(tmp_path, reward_of(endpoint), "tasks.eval=null")
    assert (summary.outcome, summary.signal) == ("interrupted", "SIGINT")
    assert episodes(tmp_path, "train") == []
