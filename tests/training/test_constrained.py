"""Tokens that were sampled under a grammar, from the real engine to the real learner."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.algorithms.algorithms import grpo

from agentrl.algorithms.batch import build_batch
from agentrl.config.models import Config
from agentrl.config.training import TrainingSection
from agentrl.errors import ConfigError, RunError
from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.gateway.contract import ModelRequest
from agentrl.inference.contract import BackendContext, Capabilities, Grammar
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.grammars import Grammars, grammars_of
from agentrl.learner.learner import Learner
from agentrl.rollout.contract import Episode, EpisodeKey, Group
from agentrl.runs.decoding import to_tree
from agentrl.runs.encoding import _tree_row
from agentrl.tokens.selection import load_renderer
from agentrl.training.parts import check_sampling
from agentrl.training.untrained import mostly_excluded, refuse_untrainable

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "op": {"enum": ["+", "*", "minus"]}},
    "required": ["a", "op"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "calculate", "parameters": SCHEMA, "strict": True}}
ASKED: dict[str, dict[str, Any]] = {
    "forced": {"tools": [TOOL], "must_call": ("calculate",)},
    "strict": {"tools": [TOOL]},
    "answer": {"grammar": Grammar("json_schema", json.dumps(SCHEMA))},
    "cooler": {"grammar": Grammar("regex", "[a-z ]{3,20}"), "fields": {"temperature": 0.7}},
    "free": {},
}


@pytest.fixture(scope="module")
def group(tiny_folder: Path) -> Iterator[Group]:
    """An episode of each kind of request, and one more, as the engine has sampled them."""
    with asyncio.Runner() as runner:
        backend = TorchBackend(BackendContext(tiny_folder, options={"device": "cpu"}))
        completer = EngineCompleter(backend, runner.run(backend.start()), load_renderer(tiny_folder))
        gateway = Gateway(completer)
        episodes = []
        for sample, asked in enumerate([*ASKED.values(), *ASKED.values()]):
            session = gateway.open_session(SessionSettings(training=True, max_tokens=90, seed_key=(sample,)))
            for text in ("What is 12 * 34?", "What is 57 + 28?"):
                request = ModelRequest(body={}, messages=[{"role": "user", "content": text}], **asked)
                runner.run(completer.complete(session, request))
            key = EpisodeKey("train", 0, 0, sample)
            episodes.append(Episode(key, {}, "rewarded", float(sample), calls=session.calls, tree=session.tree))
        yield Group(0, tuple(episodes))
        runner.run(backend.stop())


@pytest.fixture(scope="module")
def grammars(tiny_folder: Path) -> Grammars:
    found = grammars_of(tiny_folder)
    assert found is not None
    return found


@pytest.mark.parametrize("choices", [False, True])
def test_at_learning_rate_zero_learner_and_engine_agree(choices, group, grammars, tiny_folder) -> None:
    """On every trained token: the learner computes again what the grammar allowed."""
    algorithm = grpo()
    batch, account = build_batch([group], algorithm, allowed=grammars, choices=choices)
    settings = TrainingSection(learning_rate=0.0, precision="float32")
    learner = Learner(tiny_folder, settings, algorithm.loss, 0)
    scores = learner.score(batch.targets, batch.paths)
    assert np.abs(scores.logprob - batch.logprob).max() < 1e-5
    metrics = learner.step(batch).metrics
    assert metrics["policy/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["policy/ratio_max"] == pytest.approx(1, abs=1e-5)
    assert account.counts["tokens/excluded"] > 0
    tokens = sum(len(span.ids) for episode in group.episodes for span in episode.tree.spans if span.sampled)
    assert metrics["tokens/trained"] + account.counts["tokens/excluded"] == tokens


def test_without_its_masks_the_learner_would_not_agree(group, grammars, tiny_folder) -> None:
    """So that the agreement above says something."""
    batch, _ = build_batch([group], grpo(), allowed=grammars, choices=True)
    targets = batch.targets
    unmasked = type(targets)(targets.path, targets.depth, targets.token, targets.temperature)
    learner = Learner(tiny_folder, TrainingSection(), grpo().loss, 0)
    assert np.abs(learner.score(unmasked, batch.paths).logprob - batch.logprob).max() > 0.01


def test_what_the_grammar_left_no_choice_about_is_not_trained(group, grammars) -> None:
    batch, _ = build_batch([group], grpo(), allowed=grammars, choices=True)
    assert batch.targets.masks is not None
    assert batch.targets.mask is not None
    allowed = np.unpackbits(batch.targets.masks, axis=1).sum(axis=1)
    assert (allowed[batch.targets.mask[batch.targets.mask >= 0]] > 1).all()


def test_by_default_constrained_tokens_are_left_out_and_those_before_a_call_are_not(group, grammars) -> None:
    batch, _ = build_batch([group], grpo(), allowed=grammars)
    trained = {label.rpartition("-")[2] for label in batch.labels}
    names = list(ASKED) * 2
    assert {names[int(sample)] for sample in trained} == {"strict", "free"}


def test_what_is_kept_reads_back_from_a_store(group) -> None:
    for episode in group.episodes:
        row = _tree_row(episode.tree)
        assert to_tree(*row) == episode.tree
    spans = json.loads(_tree_row(group.episodes[2].tree)[0])
    grammar, again = [span[6] for span in spans if len(span) > 6]
    assert isinstance(grammar, list)
    assert isinstance(again, int)


def test_an_episode_that_grammars_leave_nothing_of_stops_the_run(group) -> None:
    episode = group.episodes[2]
    refuse_untrainable(None, choices=False)
    with pytest.raises(RunError, match="every token of it was constrained") as stopped:
        refuse_untrainable(episode, choices=False)
    assert "rollout.constrained=train" in str(stopped.value.fix)
    with pytest.raises(RunError, match="left no choice") as stopped:
        refuse_untrainable(episode, choices=True)
    assert "rollout.override" in str(stopped.value.fix)
    assert "constrained=train" not in str(stopped.value.fix)


def test_where_most_tokens_are_left_out_that_is_said() -> None:
    """As with strict tools, of whose calls little but the beginning is the policy's own."""
    said = mostly_excluded({"tokens/excluded": 30.0, "tokens/trained": 12.0})
    assert said is not None
    assert said.startswith("30 of 42 tokens")
    assert "rollout.constrained=train" in said
    assert mostly_excluded({"tokens/excluded": 12.0, "tokens/trained": 30.0}) is None
    assert mostly_excluded({"tokens/excluded": 12.0, "tokens/trained": 0.0}) is None


def test_a_backend_that_reports_other_logprobs_cannot_train_constrained_tokens() -> None:
    config = Config.model_validate({"agent": "math", "rollout": {"constrained": "train"}})
    other = Capabilities(1024, 8, masked_logprobs=False)
    with pytest.raises(ConfigError, match=r"rollout\.constrained=train"):
        check_sampling(config, other, trains=True)
    check_sampling(config, other, trains=False)
    check_sampling(config, Capabilities(1024, 8), trains=True)
    check_sampling(config.model_copy(update={"rollout": Config(agent="math").rollout}), other, trains=True)
