"""Stored episodes under another reward: which rewards change, and how the ranking within each group does."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl import Trainer, load_config, open_run
from agentrl.cli import main
from agentrl.config.section import PartModel
from agentrl.errors import RunError
from agentrl.reporting.plain import PlainReporter
from agentrl.training.rescoring import GroupScores

SCRIPT = """
import asyncio
from openai import AsyncOpenAI
from agentrl import RewardError

async def answering(data, *, base_url, api_key, http_client):
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages = [{"role": "user", "content": data["question"]}]
    return (await client.chat.completions.create(model="policy", messages=messages)).choices[0].message.content

def length(answer):
    return float(len(answer))

def shortness(answer):
    return -float(len(answer))

def of_some(answer, data, *, episode):
    if episode.key.sample == 0:
        raise ValueError("not this one")
    return 1.0

async def slow(answer, *, episode):
    await asyncio.sleep(60 if episode.key.sample == 1 else 0)
    return 0.5

class Ranks:
    asked = []
    def __call__(self, answer):
        return 7.0
    async def score_group(self, answers, data, *, episodes):
        Ranks.asked.append(len(answers))
        order = sorted(range(len(answers)), key=lambda n: (len(answers[n]), n))
        return [float(order.index(n)) for n in range(len(answers))]
ranks = Ranks()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose episodes have answers, scored by their length."""
    folder = tmp_path_factory.mktemp("rescoring")
    (folder / "parts.py").write_text(SCRIPT)
    small = ("training.steps=2", "rollout.tasks_per_step=3", "rollout.group_size=4", "rollout.max_tokens=12")
    settings = (f"run.dir={folder / 'runs'}", "run.name=scored", f"reward={folder / 'parts.py'}:length", *small)
    config = load_config(None, *settings, "evaluation.tasks=2", environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        trainer.train(f"{folder / 'parts.py'}:answering")
    own = load_config(None, f"run.dir={folder / 'runs'}", "run.name=own", *small, "tasks.eval=null", environ={})
    with Trainer(own, reporter=PlainReporter(io.StringIO())) as trainer:
        trainer.train("math")
    return folder


def rescoring(folder: Path, *rewards: str, run: str = "scored", settings: tuple[str, ...] = (), phase: str = "train"):
    config = load_config(folder / "runs" / run / "config.yaml", *settings, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        parts = [PartModel(name=f"{folder / 'parts.py'}:{name}") for name in rewards]
        return trainer.rescore(folder / "runs" / run, *parts, phase=phase)


def test_the_reward_of_the_run_changes_nothing(folder: Path) -> None:
    (same,) = rescoring(folder)
    numbers = same.to_json()
    assert (numbers["episodes"], numbers["scored"], numbers["changed"], numbers["pairs_flipped"]) == (24, 24, 0, 0)
    assert numbers["kendall_tau"] in (1.0, None)
    assert numbers["not_scored"] == []


def test_the_opposite_reward_turns_every_ranking_round(folder: Path) -> None:
    (opposite,) = rescoring(folder, "shortness")
    numbers = opposite.to_json()
    assert numbers["pairs"] == numbers["pairs_flipped"] > 0
    assert numbers["kendall_tau"] == -1
    assert numbers["mean_after"] == pytest.approx(-numbers["mean_before"])
    told_apart = numbers["groups"] - numbers["groups_without_difference_before"]
    assert numbers["groups_with_another_best"] == told_apart
    stored = {str(row.key): row.reward for row in open_run(folder / "runs" / "scored").episodes(phase="train")}
    assert {each["episode"]: each["before"] for each in numbers["rewards"]} == stored


def test_a_reward_that_fails_is_counted_and_is_no_zero(folder: Path) -> None:
    (some,) = rescoring(folder, "of_some")
    numbers = some.to_json()
    (failed,) = numbers["not_scored"]
    assert (failed["count"], numbers["scored"], numbers["mean_after"]) == (6, 18, 1.0)
    assert "ValueError" in failed["reason"]
    assert all(each["after"] is None for each in numbers["rewards"] if each["episode"].endswith("-0"))


def test_a_reward_that_takes_too_long_fails_its_episode_alone(folder: Path) -> None:
    (slow,) = rescoring(folder, "slow", settings=("rollout.episode_timeout=0.3",))
    assert list(slow.reasons()) == ["the reward failed: the reward took too long"]
    assert slow.reasons().total() == 6
    assert {each.after for each in slow.scored} == {0.5}


def test_a_reward_that_compares_is_given_a_training_group_and_single_episodes_of_an_evaluation(folder: Path) -> None:
    (ranked,) = rescoring(folder, "ranks")
    assert all(sorted(each.after or 0.0 for each in group) == [0, 1, 2, 3] for group in ranked.groups)
    (alone,) = rescoring(folder, "ranks", phase="eval")
    assert {each.after for each in alone.scored} == {7.0}


def test_what_the_store_lacks_is_said_with_the_way_out(folder: Path) -> None:
    with pytest.raises(RunError, match=r"the store has no answer of it.*--answer last-message"):
        rescoring(folder, "length", run="own")
    (last,) = rescoring(folder, "length", run="own", settings=("replay.answer=last-message",))
    assert len(last.scored) == 24
    assert all(each.after == float(int(each.after or 0)) for each in last.scored)


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


def test_the_command_prints_what_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, parts = str(folder / "runs" / "scored"), folder / "parts.py"
    assert command("replay", run, "--reward", f"{parts}:shortness,{parts}:of_some") == 0
    printed = capsys.readouterr().out
    assert "Kendall tau -1.000" in printed
    assert "18 of 24 episodes scored" in printed
    assert command("replay", run, "--reward", f"{parts}:shortness", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rewards"][0]["kendall_tau"] == -1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "nothing says which run to replay"),
        (["RUN"], 2, "nothing says what to do with the episodes"),
        (["RUN", "--reward", "nomber-match"], 2, "there is no reward 'nomber-match'"),
        (["RUN", "--algorithm", "grpo", "--reward", "a,b"], 2, "trains by one reward"),
        (["RUN", "--algorithm", "grpo", "--dry-run", "rollout.group_size=2"], 2, "samples nothing"),
        (["RUN", "--algorithm", "grpo", "algorithm=rloo"], 2, "both name the algorithm"),
        (["RUN", "--algorithm", "grpo", "--phase", "eval"], 2, "--phase eval has no effect beside --algorithm"),
        (["RUN", "--algorithm", "grpo", "--answer", "stored", "--dry-run"], 2, "the episodes keep their rewards"),
        (["RUN", "--algorithm", "grpo", "replay.run=other"], 2, "names a run beside the argument RUN"),
        (["RUN", "--algorithm", "sft", "--dry-run"], 2, "is not for agentrl replay"),
        (["RUN", "--algorithm", "distill", "algorithm.advantage.model=no-teacher"], 2, "'no-teacher'"),
        (["RUN", "--reward", "regex,numeric-match", "reward.pattern=5"], 2, "a setting of one reward"),
        (["RUN", "--reward", "numeric-match", "--dry-run"], 2, "--dry-run has no effect without --algorithm"),
        (["RUN", "--reward", "regex", "reward.pattern=5", "--answer", "last-message"], 0, "scoring by regex"),
        (["RUN", "--algorithm", "grpo", "training.steps=9"], 2, "is more than the 2 steps"),
        (["RUN", "--phase", "eval-greedy", "--reward", "PARTS:shortness", "training.steps=1"], 0, "nothing is trained"),
    ],
)
def test_what_has_no_sense_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    names = {"RUN": str(folder / "runs" / "scored"), "PARTS": str(folder / "parts.py")}
    given = [names.get(each, each).replace("PARTS", names["PARTS"]) for each in arguments]
    assert command("replay", *given) == code
    assert said in capsys.readouterr().err


PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=7)


@given(pairs=PAIRS)
def test_rankings_are_compared_pair_by_pair(pairs: list[tuple[int, int]]) -> None:
    before, after = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    group = GroupScores(before, after)
    twos = [(n, m) for n in range(len(pairs)) for m in range(n)]
    signs = [
        (math.copysign(1, before[n] - before[m]) * (before[n] != before[m]),
         math.copysign(1, after[n] - after[m]) * (after[n] != after[m]))
        for n, m in twos
    ]  # fmt: skip
    assert group.pairs == sum(one != 0 for one, _ in signs)
    assert group.flipped == sum(one * other < 0 for one, other in signs)
    scale = math.sqrt(sum(one != 0 for one, _ in signs) * sum(other != 0 for _, other in signs))
    expected = sum(one * other for one, other in signs) / scale if scale else None
    assert group.tau == (None if expected is None else pytest.approx(expected))
