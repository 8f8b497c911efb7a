"""Whole runs in which something goes wrong now and then: they go on, and nobody can overlook it."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
from openai import AsyncOpenAI

from agentrl import Trainer, load_config
from agentrl.errors import BackendError, PolicyError, RunError
from agentrl.inference.contract import Chunk, GenerationRequest
from agentrl.inference.engine.backend import TorchBackend
from agentrl.reporting.plain import PlainReporter
from agentrl.rollout.contract import Fate
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.folder import RunFolder, read_summary

BRIEF = ("evaluation.every=0", "training.checkpoint_every=0", "tasks.eval=null", "rollout.tasks_per_step=2")


@pytest.fixture
def train(tmp_path):
    """Train briefly with the defaults; returns the run folder, the summary and what was narrated."""

    def train(agent, *settings, steps=2):
        stream = io.StringIO()
        brief = (f"run.dir={tmp_path}", "run.name=run", *BRIEF, f"training.steps={steps}")
        config = load_config(None, *brief, *settings, environ={})
        with Trainer(config, reporter=PlainReporter(stream)) as trainer:
            summary = trainer.train(agent)
        return RunFolder(tmp_path / "run"), summary, stream.getvalue()

    return train


async def answer(data, base_url, api_key, http_client, max_retries=0):
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client, max_retries=max_retries)
    messages = [{"role": "user", "content": data["question"]}]
    made = await client.chat.completions.create(model="policy", messages=messages, max_tokens=4)
    return made.choices[0].message.content


class Unsteady:
    """Raises in every fifth episode, each time with another text."""

    numbers = itertools.count()

    async def run(self, data, *, base_url, api_key, http_client):
        number = next(self.numbers)
        text = await answer(data, base_url, api_key, http_client)
        if number % 5 == 0:
            raise ValueError(f"cannot make a number of {text!r}, in episode {number}")
        return float(len(text))


def test_failed_episodes_are_seen_in_the_lines_the_log_and_the_summary(train):
    folder, summary, lines = train(Unsteady)
    log, written = (folder.logs / "run.log").read_text(), json.loads(folder.summary.read_text())
    failed = len([number for number in range(32) if number % 5 == 0])
    assert (summary.outcome, summary.failed) == ("completed", failed)
    assert written["failed"] == failed
    (reason,) = written["reasons"]["failed"]
    assert reason["count"] == failed
    assert re.match(
        r"agent: ValueError: cannot make a number of .*test_what_went_wrong\.py:\d+, in run", reason["reason"]
    )
    assert re.fullmatch(r"train-\d+-\d+-\d+", reason["episode"])
    for text in (lines, log):
        assert re.search(r"step 1/2: .* 4 failed, .*truncated", text)
        assert re.search(rf"4 of 16 episodes failed; commonest: 4x {re.escape(reason['reason'])}", text)
    assert re.search(rf"{failed} of 32 episodes failed; commonest: {failed}x agent: ValueError", log)
    assert log.count('raise ValueError(f"cannot make a number of {text!r}, in episode {number}")') == 1


class Wandering:
    """Does something else in each of the eight episodes of a group."""

    numbers = itertools.count()

    async def run(self, data, *, base_url, api_key, http_client):
        ways = (
            self.fine,
            self.fine,
            self.jumps,
            self.loops,
            self.begins_too_long,
            self.raises,
            self.rejects,
            self.tires,
        )
        ask = partial(said, AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client, max_retries=0))
        return await ways[next(self.numbers) % 8](ask, [{"role": "user", "content": data["question"]}])

    async def fine(self, ask, messages):
        await ask(messages)
        return 1.0

    async def jumps(self, ask, messages):
        """Fits a pass, and then not even the context."""
        await ask(messages)
        await ask([*messages, {"role": "user", "content": "And? " * 4000}])

    async def loops(self, ask, messages):
        """Outgrows a pass, and then the context."""
        while True:
            messages += [{"role": "assistant", "content": await ask(messages)}, {"role": "user", "content": "And?"}]

    async def begins_too_long(self, ask, messages):
        await ask([{"role": "user", "content": "And? " * 4000}])

    async def raises(self, ask, messages):
        raise ValueError("no such tool")

    async def rejects(self, ask, messages):
        await ask(messages)

    async def tires(self, ask, messages):
        await ask(messages)
        raise PolicyError("no answer in 1 turn", limit="turns")


async def said(client, messages):
    made = await client.chat.completions.create(model="policy", messages=messages, max_tokens=4)
    return made.choices[0].message.content or "?"


def test_a_run_whose_policy_runs_into_every_limit_completes_and_its_ledger_adds_up(train):
    limits = ("inference.backend.context_length=128", "training.tokens_per_batch=90", "rollout.max_staleness=1")
    folder, summary, lines = train(Wandering, *limits, steps=2)
    assert summary.outcome == "completed"
    assert (
        summary.ledger
        == read_summary(folder.summary).ledger
        == {
            "received": 32,
            "trained": 16,
            "without_difference": 0,
            "filtered": 0,
            "rejected": 4,
            "failed": 4,
            "stale": 0,
            "over_long": 4,
            "constrained": 0,
            "without_tokens": 4,
            "unfinished": 0,
            "failed_by": {"agent": 4},
        }
    )
    found = Counter(episode.limit or episode.outcome for episode in EpisodeReader(folder.episodes).load())
    assert found == {"rewarded": 8, "rejected": 4, "failed": 4, "context": 8, "pass": 4, "turns": 4}
    assert (summary.limited, summary.mistaken, summary.failed, summary.rejected) == (16, 0, 4, 4)
    reasons = {reason["reason"].partition(":")[0]: reason["count"] for reason in summary.reasons["limited"]}
    assert reasons == {"context overflow": 8, "longer than a pass": 4, "turn limit": 4}
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    fates = set(get_args(Fate)) - {"unfinished"}
    for row in rows:
        assert row["ledger/received"] == 16 == sum(row[f"ledger/{fate}"] for fate in fates)
        assert (row["rollout/limits/context"], row["rollout/limits/pass"], row["rollout/limits/turns"]) == (4, 2, 2)
    assert len(re.findall(r"warning: 2 of 16 episodes of step 1 are longer than a pass", lines)) == 1
    longest = int(re.search(r"set training\.tokens_per_batch=90 to (\d+) or more", lines)[1])
    assert 90 < longest < 128
    told = "trained, 2 rejected, 2 failed (2 agent), 2 longer than a pass, 2 without tokens"
    assert f"ledger of 16 episodes: 8 {told}" in lines
    assert "ledger of 32 episodes: 16 trained" in (folder.logs / "run.log").read_text()


class Slow:
    """Its first episode goes on until most others have begun, under weights of several versions."""

    started = 0
    most_have_begun = asyncio.Event()

    async def run(self, data, *, base_url, api_key, http_client):
        number = Slow.started
        Slow.started += 1
        if Slow.started > 24:
            Slow.most_have_begun.set()
        text = await answer(data, base_url, api_key, http_client)
        if number == 0:
            await Slow.most_have_begun.wait()
            text += await answer(data, base_url, api_key, http_client)
        return float(len(text))


@pytest.mark.parametrize(("on_stale", "received"), [("drop", 36), ("mask", 32)])
def test_what_grew_too_old_is_in_the_ledger(train, on_stale, received):
    """A group of four that begins at version 0 ends at version 2, which is beyond a bound of 1."""
    Slow.started, Slow.most_have_begun = 0, asyncio.Event()
    bound = ("rollout.max_staleness=1", f"rollout.on_stale={on_stale}", "rollout.group_size=4")
    folder, summary, _ = train(Slow, *bound, steps=4)
    ledger, rows = summary.ledger, [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert ledger["received"] == sum(1 for _ in EpisodeReader(folder.episodes).load()) == received
    assert ledger["trained"] + ledger["without_difference"] + ledger["stale"] == received
    assert ledger["stale"] == (4 if on_stale == "drop" else 3)
    assert max(row["staleness/max"] for row in rows) <= 1
    masked = sum(row["tokens/stale"] for row in rows)
    assert (masked == 0) if on_stale == "drop" else (masked > 0)


class Dying:
    """Runs well for a step, and then no more."""

    numbers = itertools.count()

    async def run(self, data, *, base_url, api_key, http_client):
        if next(self.numbers) >= 16:
            raise ValueError("the tools are gone")
        return float(len(await answer(data, base_url, api_key, http_client)))


def test_what_a_run_that_stops_had_started_is_in_its_ledger(train, tmp_path):
    with pytest.raises(RunError, match="over the failure budget"):
        train(Dying, steps=4)
    folder = RunFolder(tmp_path / "run")
    ledger = read_summary(folder.summary).ledger
    stored = sum(1 for _ in EpisodeReader(folder.episodes).load())
    assert ledger["unfinished"] >= stored - 16 > 0
    assert ledger["received"] == 16 + ledger["unfinished"]
    assert ledger["trained"] + ledger["without_difference"] == 16


class EverySeventh(TorchBackend):
    """Fails now and then."""

    numbers = itertools.count(1)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        number = next(self.numbers)
        if number % 7 == 0:
            raise RuntimeError(f"request {number} fell out of the queue")
        async with aclosing(super().generate(request)) as stream:
            async for chunk in stream:
                yield chunk


async def lengths(data, *, base_url, api_key, http_client):
    return float(len(await answer(data, base_url, api_key, http_client)))


async def patient(data, *, base_url, api_key, http_client):
    return float(len(await answer(data, base_url, api_key, http_client, max_retries=2)))


@pytest.mark.parametrize("agent", [lengths, patient], ids=["by the runner", "by the agent's client"])
def test_failures_of_the_backend_that_were_overcome_are_counted_and_shown(train, agent):
    _, summary, lines = train(agent, f"inference.backend={__name__}:EverySeventh", steps=1)
    assert (summary.outcome, summary.failed) == ("completed", 0)
    assert summary.retried >= 2
    (reason,) = summary.reasons["retried"]
    assert reason["count"] == summary.retried
    assert reason["reason"].startswith("backend: the inference backend failed: RuntimeError: request ")
    assert re.search(rf"{summary.retried} failed calls or attempts were tried again; commonest", lines)


class Changing(TorchBackend):
    """Says something else than what it has sampled."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        async with aclosing(super().generate(request)) as stream:
            async for chunk in stream:
                yield self.changed(chunk)


class Cheerful(Changing):
    def changed(self, chunk: Chunk) -> Chunk:
        return replace(chunk, logprobs=(5.0,) * len(chunk.ids))


class Forgetful(Changing):
    def changed(self, chunk: Chunk) -> Chunk:
        return replace(chunk, logprobs=chunk.logprobs[:1])


class Negative(Changing):
    def changed(self, chunk: Chunk) -> Chunk:
        return replace(chunk, ids=(-1, *chunk.ids[1:]))


class Boundless(Changing):
    def changed(self, chunk: Chunk) -> Chunk:
        return replace(chunk, ids=(60_000, *chunk.ids[1:]))


class Undated(Changing):
    """Gives every token the first version."""

    def changed(self, chunk: Chunk) -> Chunk:
        return replace(chunk, versions=(0,) * len(chunk.ids))


FAULTS = {
    "impossible log-probabilities": (Cheerful, 1, "a token came with the logprob 5, which no probability has"),
    "too few log-probabilities": (Forgetful, 1, r"a completion of \d+ ids came with 1 logprobs"),
    "a negative id": (Negative, 1, "a completion holds id -1, and the vocabulary has"),
    "an id beyond the vocabulary": (Boundless, 1, r"a completion holds id 60000, and the vocabulary has \d+"),
    "an older version": (Undated, 2, "under version 0 of the weights, and not under 1"),
}


SMALL = ("rollout.group_size=2", "rollout.max_attempts=1")


@pytest.mark.parametrize(("backend", "step", "said"), FAULTS.values(), ids=FAULTS)
def test_a_backend_that_breaks_its_contract_stops_the_run_within_a_step_and_is_named(
    train, backend, step, said, caplog
):
    of_the_step = rf"\[train-[{2 * step - 2}{2 * step - 1}]-"  # The key of an episode of its two groups.
    failed = rf"4 of 4 episodes failed.*4x backend: the inference backend broke.*{said}.*{of_the_step}"
    with pytest.raises(RunError, match=failed):
        train(
            lengths,
            f"inference.backend={__name__}:{backend.__name__}",
            "rollout.group_size=2",
            "rollout.max_attempts=1",
        )
    assert caplog.records == []


class Deaf(TorchBackend):
    """Takes the version of new weights, and not the weights."""

    async def update_weights(self, weights) -> None:
        _, engine = self._running()
        engine.version = weights.version


def test_a_backend_that_lies_about_its_weights_stops_the_run_within_a_step(train, tmp_path):
    said = "does not sample from the learner's weights: after the update to version 1 "
    with pytest.raises(BackendError, match=said):
        train("math", f"inference.backend={__name__}:Deaf", steps=5)
    assert read_summary(tmp_path / "run" / "summary.json").steps == 1


class Silent(TorchBackend):
    """Never answers."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        await asyncio.sleep(3600)
        yield


AGENTS = """
from openai import OpenAI

def agent(data, *, base_url, api_key):
    client = OpenAI(base_url=base_url, api_key=api_key, max_retries=0)
    messages = [{"role": "user", "content": data["question"]}]
    return client.chat.completions.create(model="policy", messages=messages, max_tokens=4).choices[0].message.content
"""


@pytest.fixture(params=["inline", "subproc"])
def agent(request, tmp_path):
    """An agent that returns what the model wrote, and runs here or in worker processes."""
    if request.param == "inline":
        return answer
    (tmp_path / "my_agents.py").write_text(AGENTS)
    return f"{tmp_path}/my_agents.py:agent"


def placed(agent):
    return ("rollout.mode=inline",) if agent is answer else ("rollout.mode=subproc", "rollout.max_workers=1")


def test_a_backend_that_never_answers_is_the_one_to_blame(train, agent):
    settings = (f"inference.backend={__name__}:Silent", "rollout.episode_timeout=2", *placed(agent))
    with pytest.raises(RunError) as caught:
        train(agent, *settings, "rollout.group_size=1", "algorithm=reinforce++", "reward=exact-match")
    assert re.search(r"2 of 2 .*commonest: 2x backend: the episode did not end within 2 s", str(caught.value))
    assert "make the agent faster" not in str(caught.value)


def spins(answer, data):
    while True:
        pass


def test_a_reward_that_spins_fails_its_episodes_on_its_own_side(train, agent):
    settings = (f"reward={__name__}:spins", "rollout.episode_timeout=1", *placed(agent))
    with pytest.raises(RunError, match=r"2 of 2 .*commonest: 2x reward: the reward blocked the event loop"):
        train(agent, *settings, "rollout.group_size=1", "algorithm=reinforce++")


class Spinning(TorchBackend):
    """Holds the event loop that it is called on."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        while True:
            pass
        yield


def test_a_backend_that_spins_is_the_one_to_blame_too(train):
    settings = (f"inference.backend={__name__}:Spinning", "rollout.episode_timeout=1", "rollout.max_attempts=1")
    with pytest.raises(RunError, match=r"2 of 2 .*commonest: 2x backend: the inference backend blocked the event loop"):
        train(lengths, *settings, "rollout.group_size=1", "algorithm=reinforce++")


class Lingering(TorchBackend):
    """Does not come to an end."""

    async def stop(self) -> None:
        await super().stop()
        await asyncio.sleep(3600)


class Failing(TorchBackend):
    """Fails to stop."""

    async def stop(self) -> None:
        await super().stop()
        raise RuntimeError("no such process")


class Blocking(TorchBackend):
    """Holds the event loop that it is stopped on."""

    async def stop(self) -> None:
        await super().stop()
        while True:
            pass


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("Lingering", "did not stop within"),
        ("Failing", "no such process"),
        ("Blocking", "blocked the event loop instead of stopping"),
    ],
)
def test_a_backend_that_does_not_stop_keeps_no_finished_run_open(train, monkeypatch, backend, said):
    monkeypatch.setattr("agentrl.training.backends._STOP_S", 0.2)
    _, summary, lines = train(lengths, f"inference.backend={__name__}:{backend}", "rollout.group_size=2", steps=1)
    assert summary.outcome == "completed"
    assert re.search(rf"warning: the inference backend .*{said}", lines)


def test_a_backend_that_takes_its_time_to_stop_is_told_of_meanwhile(train, monkeypatch):
    monkeypatch.setattr("agentrl.training.backends._STOP_S", 0.2)
    monkeypatch.setattr("agentrl.training.backends._WARN_S", 0.1)
    _, _, lines = train(lengths, f"inference.backend={__name__}:Lingering", "rollout.group_size=2", steps=1)
    assert "warning: the inference backend has not stopped after 0.1 s; after 0.2 s it is left as it is" in lines
