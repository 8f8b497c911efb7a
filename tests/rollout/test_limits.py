"""Limits that a policy runs into are outcomes with a reward, whatever the agent's SDK makes of them.

Real SDKs, gateway and engine, with the bundled model's context of 256 tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.rollout import limits
from tests.rollout.batches import QUICK, process_of

from agentrl.agents.binding import bind_agent
from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.inference.contract import BackendContext
from agentrl.inference.engine.backend import TorchBackend
from agentrl.rollout.contract import EpisodeKey
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.rollout.inline import InlineRunner
from agentrl.rollout.subproc.executor import SubprocRunner
from agentrl.tokens.selection import load_renderer

SETTINGS = SessionSettings(training=True, max_tokens=12, seed_key=(0, "train", 0, 0, 0))
CONTEXT = r"context overflow: the (messages|prompt) .*context of 256"


@dataclass
class Runners:
    """Episodes of ``tests.rollout.limits``, inline and in workers, on one gateway."""

    gateway: Gateway
    workers: SubprocRunner

    async def episode(self, name, *, mode="inline", settings=SETTINGS, score=None, **options):
        inline = InlineRunner(bind_agent(limits.by_name, {}, name="agent"))
        runner = inline if mode == "inline" else self.workers
        runs = EpisodeRunner(runner, self.gateway.open_session, score, 30.0, 2, **options)
        return await runs.run_episode(EpisodeKey("train", 1, 0, 0), {"agent": name}, settings)


@contextlib.asynccontextmanager
async def runners(model_folder, logs):
    backend = TorchBackend(BackendContext(model_folder, options={"context_length": 256}))
    gateway = Gateway(EngineCompleter(backend, await backend.start(), load_renderer(model_folder)))
    gateway.start()
    workers = SubprocRunner(
        process_of(f"{limits.__file__}:by_name"),
        concurrency=8,
        max_workers=1,
        episodes_per_worker=None,
        logs=logs,
        open_worker_endpoint=gateway.open_worker_endpoint,
        warn=lambda _: None,
        limits=QUICK,
    )
    try:
        async with workers:
            yield Runners(gateway, workers)
    finally:
        gateway.stop()
        await backend.stop()


async def not_called(answer, data, view):
    raise AssertionError("the reward function was called")


async def pleased(answer, data, view):
    return 0.25


@pytest.fixture(scope="module")
def ended(tiny_folder, tmp_path_factory):
    """Every agent's episode inline and in a worker, and episodes under other settings, all of them from one gateway."""

    async def main(logs: Path):
        async with runners(tiny_folder, logs) as made:
            names = [agent.__name__ for agent in limits.AGENTS]
            modes = [(name, mode) for name in names for mode in ("inline", "subproc")]
            episodes = [made.episode(name, mode=mode) for name, mode in modes]
            evaluating = replace(SETTINGS, training=False)
            others = {
                "rejected": made.episode("looping", on_overflow=None),
                "of -1": made.episode("at_once", on_overflow=-1.0),
                "unscored": made.episode("looping", score=not_called, on_overflow=0.5),
                "no words": made.episode("out_of_turns", score=not_called, on_overflow=0.5),
                "words": made.episode("out_of_turns_with_words", score=pleased),
                "long": made.episode("cut", longest=8, score=not_called, on_overflow=-1.0),
                "long, rejected": made.episode("cut", longest=8, on_overflow=None),
                "fits": made.episode("cut", longest=80),
                "long, evaluated": made.episode("cut", longest=8, settings=evaluating),
            }
            results = await asyncio.gather(*episodes, *others.values())
            return dict(zip([*modes, *others], results, strict=True))

    return asyncio.run(main(tmp_path_factory.mktemp("logs")))


MODES = pytest.mark.parametrize("mode", ["inline", "subproc"])


@MODES
@pytest.mark.parametrize(
    "name",
    [
        *("looping", "at_once", "responding", "streaming", "anthropic"),
        *("framework", "retelling", "grouped", "giving_up", "raw"),
    ],
)
def test_a_prompt_that_outgrows_the_context_is_an_outcome(ended, name, mode):
    episode = ended[name, mode]
    assert (episode.outcome, episode.reward, episode.failure) == ("rewarded", 0.0, None)
    assert episode.limit == "context"
    assert re.match(CONTEXT, episode.mistake), episode.mistake
    assert episode.mistake_fingerprint.startswith("context overflow: context_length_exceeded")
    assert episode.attempts == 1
    if name == "looping":
        assert len(episode.calls) > 1
        assert len([span for span in episode.tree.spans if span.sampled]) == len(episode.calls)


@MODES
def test_an_agent_that_knows_what_to_do_keeps_its_own_reward(ended, mode):
    episode = ended["saving_itself", mode]
    assert (episode.reward, episode.mistake, episode.failure) == (0.7, None, None)


@MODES
def test_what_breaks_after_a_limit_was_overcome_is_a_failure(ended, mode):
    assert ended["going_on", mode].failure.side != "policy"
    assert ended["going_on", mode].mistake is None
    assert "LookupError: no such tool" in ended["breaking", mode].failure.reason


@MODES
def test_an_answer_that_was_cut_is_a_limit_only_where_the_agent_fails_of_it(ended, mode):
    parsing, cut = ended["parsing", mode], ended["cut", mode]
    assert (parsing.outcome, parsing.reward, parsing.limit) == ("rewarded", 0.0, "tokens")
    assert parsing.mistake.startswith("token limit: LengthFinishReasonError: ")
    assert parsing.calls[0].finish_reason == "length"
    assert (cut.reward, cut.mistake, cut.calls[0].finish_reason) == (0.3, None, "length")


@MODES
def test_a_turn_limit_is_told_by_the_agent(ended, mode):
    episode = ended["out_of_turns", mode]
    assert (episode.reward, episode.limit) == (0.0, "turns")
    assert episode.mistake == "turn limit: no answer within 1 turn"
    assert len(episode.calls) == 1


def test_the_config_decides_what_a_limit_is_worth(ended):
    rejected = ended["rejected"]
    assert (rejected.outcome, rejected.reward, rejected.limit) == ("rejected", None, "context")
    assert rejected.fate == "rejected"
    assert ended["of -1"].reward == -1.0
    assert ended["unscored"].reward == ended["no words"].reward == 0.5


def test_a_reward_function_scores_what_was_said_before_a_turn_limit(ended):
    episode = ended["words"]
    assert (episode.reward, episode.limit) == (0.25, "turns")
    assert episode.answer


def test_an_episode_longer_than_a_pass_is_an_outcome_of_training_alone(ended):
    length = ended["fits"].tree.longest_path()
    long, rejected = ended["long"], ended["long, rejected"]
    assert (long.outcome, long.reward, long.limit, long.fate) == ("rewarded", -1.0, "pass", "over_long")
    assert long.mistake == (
        f"longer than a pass: a context of {length} tokens does not fit training.tokens_per_batch=8 (set "
        f"training.tokens_per_batch to {length} or more, or bound the agent's turns and tokens)"
    )
    assert (rejected.outcome, rejected.reward, rejected.fate) == ("rejected", None, "over_long")
    for fits in (ended["fits"], ended["long, evaluated"]):
        assert (fits.reward, fits.mistake) == (0.3, None)
