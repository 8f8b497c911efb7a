"""What a run records of every token that it sampled is what its learner used."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from tests.training.test_staleness_bound import Versions

from agentrl import Trainer, load_config, open_run
from agentrl.errors import RunError
from agentrl.learner.contract import TermScores, TrainBatch
from agentrl.learner.learner import Learner
from agentrl.rollout.contract import EpisodeKey
from agentrl.runs.reader import Run
from agentrl.runs.store import EpisodeStore
from agentrl.runs.trained import TrainedRow
from agentrl.tokens.contract import Position
from agentrl.training.recorder import RunRecorder

STEPS, GROUP = 4, 4
SLACK = 0.5
"""Seconds between the arrival of a call and the moment from which its completion is timed, at most."""
COLUMNS = ("advantages", "weights", "logprobs", "entropies", "importances")
FORM = {
    "type": "json_schema",
    "json_schema": {"name": "form", "schema": {"type": "object", "properties": {"n": {"enum": [1, 2]}}}},
}


class Busy:
    """Several turns in two conversations, some constrained or greedy; every sixth breaks, every seventh gives up.

    The second of all waits until two steps are done without it.
    """

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._begun = 0

    async def run(self, data, *, base_url, api_key, http_client):
        from openai import AsyncOpenAI

        number = self._begun
        self._begun += 1
        create = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client).chat.completions.create
        messages = [{"role": "user", "content": data["question"]}]
        first = await create(model="m", messages=messages, max_tokens=6, logprobs=True, top_logprobs=number % 3)
        messages += [first.choices[0].message.model_dump(include={"role", "content"}), {"role": "user", "content": "?"}]
        if number == 1:
            await self._versions.after(2)
        second = await create(model="m", messages=messages, max_tokens=6)
        if number % 6 == 5:
            raise RuntimeError("broke")
        if number % 7 == 6:
            return None
        if number % 4 == 0:
            await create(model="m", messages=messages, max_tokens=12, response_format=FORM)
        other = await create(model="m", messages=messages[:1], max_tokens=3)
        good = float(sum(map(ord, second.choices[0].message.content or "")) % 5)
        return good if number % 3 else {second.id: good, first.id: 0.5} | ({other.id: 1.0} if number % 2 else {})


@dataclass
class Recorded:
    """A run, and what went into each step of its learner and came out of it."""

    run: Run
    used: list[tuple[TrainBatch, TermScores]]
    began: float
    ended: float

    def row(self, episode):
        return self.run.row(episode.key)

    def asked(self, episode, span):
        """How many alternatives the call of ``span`` asked for."""
        (call,) = (call for call in episode.calls if call.id == span.sampled.call)
        return call.request.get("top_logprobs", 0)


ALGORITHMS = {
    "grpo": (
        "algorithm={name: grpo, correction: {name: truncated, cap: 1.0001}}",
        "training.minibatches=2",
        "rollout.dynamic_sampling=1",
    ),
    "gae": ("algorithm={name: ppo, correction: {name: truncated, cap: 1.0001}}",),
}


@pytest.fixture(scope="module", params=ALGORITHMS)
def recorded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    rows = [{"question": f"What is {number} + 1?"} for number in range(32)]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(
        None,
        f"run.dir={folder}",
        "run.name=run",
        f"tasks.train={folder}/tasks.jsonl",
        "tasks.eval=null",
        "rollout.max_staleness=1",
        "rollout.on_stale=mask",
        "rollout.tasks_per_step=2",
        f"rollout.group_size={GROUP}",
        "rollout.concurrency=16",
        "rollout.failure_budget=0.9",
        f"training.steps={STEPS}",
        "training.checkpoint_every=0",
        *ALGORITHMS[request.param],
        environ={},
    )
    used = []
    step = Learner.step

    def watched(learner, batch):
        result = step(learner, batch)
        used.append((batch, result.terms))
        return result

    versions = Versions()
    with pytest.MonkeyPatch.context() as patch, Trainer(config, reporter=versions) as trainer:
        patch.setattr(Learner, "step", watched)
        began = time.time()
        assert trainer.train(Busy(versions)).outcome == "completed"
    return Recorded(open_run(folder / "run"), used, began, time.time())


def test_every_trained_token_has_what_the_learner_used(recorded):
    """Found by the path that it was sampled after, which says nothing of how the run laid its records out."""
    used = defaultdict(list)
    for number, (batch, terms) in enumerate(recorded.used, start=1):
        targets = batch.targets
        values = np.stack([batch.advantage, batch.weight, terms.logprob, terms.entropy, terms.importance], axis=1)
        for at, told in enumerate(values.tolist()):
            path, depth = targets.path[at], targets.depth[at]
            prefix = tuple(batch.paths[path][: depth + 1].tolist())
            place = (number, batch.labels[path], prefix, int(targets.token[at]))
            used[place].append((float(batch.logprob[at]), int(batch.version[at]), *told))
    told = defaultdict(list)
    for episode in recorded.run.load_episodes(phase="train"):
        tokens = recorded.run.trained(episode.key)
        assert (tokens is None) == (episode.trained_step is None and recorded.row(episode).fate is None)
        at = 0
        for index, span in enumerate(episode.tree.spans):
            for offset, token in enumerate(span.ids if span.sampled is not None else ()):
                if tokens is not None and tokens.fates[at] == "trained":
                    prefix = tuple(episode.tree.path(Position(index, offset)))
                    place = (tokens.step, f"episode {episode.key}", prefix, token)
                    own = (span.sampled.logprobs[offset], span.sampled.versions[offset])
                    told[place].append((*own, *(getattr(tokens, name)[at] for name in COLUMNS)))
                elif tokens is not None:
                    assert all(math.isnan(getattr(tokens, name)[at]) for name in COLUMNS)
                at += 1
        assert tokens is None or at == len(tokens.fates)
    assert {place: sorted(values) for place, values in told.items()} == {
        place: sorted(values) for place, values in used.items()
    }
    assert sum(map(len, used.values())) > 100
    for column, name in enumerate(COLUMNS, start=2):
        assert len({values[column] for each in used.values() for values in each}) > 3, f"{name} are all alike"


def test_the_fates_of_tokens_and_of_episodes_sum_to_the_metrics_and_the_ledger(recorded):
    fates, episodes, by_step = Counter(), Counter(), Counter()
    for row in recorded.run.episodes(phase="train"):
        tokens = recorded.run.trained(row.key)
        if tokens is None:
            assert row.fate is None
            continue
        episodes[row.fate] += 1
        by_step[tokens.step] += 1
        fates.update(tokens.fates)
        trained = [value for value, fate in zip(tokens.advantages, tokens.fates, strict=True) if fate == "trained"]
        assert row.advantage == (pytest.approx(sum(trained) / len(trained)) if trained else None)
        if row.outcome != "rewarded":
            assert row.fate == row.outcome
            assert set(tokens.fates) <= {"left_out"}
    metrics = [line.metrics for line in recorded.run.steps()]
    for fate, name in (("trained", "tokens/trained"), ("constrained", "tokens/excluded"), ("stale", "tokens/stale")):
        assert fates[fate] == sum(each[name] for each in metrics)
    assert by_step == {line.step: line.metrics["ledger/received"] for line in recorded.run.steps()}
    ledger = recorded.run.summary.ledger
    unfinished = ledger["received"] - episodes.total()
    assert ledger["unfinished"] == unfinished
    assert {fate: count for fate, count in ledger.items() if fate in episodes} == dict(episodes)
    assert set(fates) == {"trained", "constrained", "stale", "unrewarded", "left_out"}
    assert {"trained", "rejected", "failed"} <= set(episodes)


def test_a_call_is_timed_from_the_start_of_its_episode_and_waits_for_its_first_token(recorded):
    stored = list(recorded.run.load_episodes(phase="train"))
    assert any(len(episode.calls) > 2 for episode in stored)
    for episode in stored:
        assert recorded.began <= episode.started <= episode.started + episode.seconds <= recorded.ended
        first, second, *others = episode.calls
        assert 0 < first.started < first.started + first.waited <= first.started + first.seconds + SLACK
        assert first.started + first.waited < second.started
        for call in (first, second, *others):
            assert call.waited > 0
            assert call.started + call.waited <= episode.seconds


def test_a_checkpoint_waits_for_the_records_and_hears_of_one_that_could_not_be_written(tmp_path):
    """Without them on disk, a run that is resumed from it would lack those of the steps before."""
    nobody = TrainedRow(EpisodeKey("train", 0, 0, 0), "trained", None, 0, (1, b"", None, None, None, None, None))
    metrics = SimpleNamespace(sync=lambda: None)
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        recorder = RunRecorder(None, store, metrics, None, None, None, None)
        recorder.trained(1, [])
        recorder.sync()
        recorder.trained(1, [nobody])
        with pytest.raises(RunError, match="step 1 trained episode train-0-0-0, which is not in"):
            recorder.sync()
        with pytest.raises(RunError, match="which is not in"):
            recorder.trained(2, [])


def test_alternatives_come_back_for_the_tokens_of_calls_that_asked(recorded):
    counts = Counter()
    for episode in recorded.run.load_episodes(phase="train"):
        for span in episode.tree.spans:
            if span.sampled is not None:
                wanted = recorded.asked(episode, span)
                assert [len(each) for each in span.sampled.alternatives] == [wanted] * len(span.ids if wanted else ())
                for pairs in span.sampled.alternatives:
                    assert list(pairs) == sorted(pairs, key=lambda pair: -pair[1])
                counts[wanted] += 1
    assert set(counts) == {0, 1, 2}
