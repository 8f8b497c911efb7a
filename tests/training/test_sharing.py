"""Runs in which the engine shares the learner's weights do what runs with a copy do, and their updates are proven."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import AsyncOpenAI
from safetensors.torch import load_file

from agentrl import Trainer, load_config, open_run
from agentrl.errors import BackendError
from agentrl.inference.contract import Weights
from agentrl.inference.engine.backend import TorchBackend
from agentrl.reporting.plain import PlainReporter

STARTS = "the inference engine does not sample from the learner's weights: after the update to version 1 "


async def answer(data, base_url, api_key, http_client):
    """Two turns; what it is paid for changes with every token."""
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client, max_retries=0)
    messages = [{"role": "user", "content": data["question"]}]
    for _ in range(2):
        reply = await client.chat.completions.create(model="policy", messages=messages, max_tokens=8)
        text = reply.choices[0].message.content or ""
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "And then?"}]
    return (hash_of(text) % 251) / 250


def hash_of(text: str) -> int:
    return sum((place + 1) * byte for place, byte in enumerate(text.encode()))


@dataclass(frozen=True)
class Outcome:
    """What a run computed, to the bit."""

    samples: Mapping[Any, Any]
    metrics: list[Mapping[str, float]]
    weights: Mapping[str, torch.Tensor]
    rows: list[Mapping[str, float]]
    said: str


def trained(folder: Path, *settings: str) -> Outcome:
    said = io.StringIO()
    small = ("rollout.tasks_per_step=3", "rollout.group_size=4", "training.steps=4", "evaluation.tasks=6")
    rest = ("training.learning_rate=1e-3", "evaluation.every=2", "training.device=cpu", "training.checkpoint_every=0")
    config = load_config(None, f"run.dir={folder}", "run.name=run", *small, *rest, *settings, environ={})
    with Trainer(config, reporter=PlainReporter(said)) as trainer:
        trainer.train(answer)
    run = open_run(folder / "run")
    rows = [row.metrics for row in run.steps()]
    timed = ("seconds/", "cost/", "weights/", "episode/seconds")
    samples = {
        episode.key: [
            (span.ids, span.sampled.logprobs, span.sampled.versions) for span in episode.tree.spans if span.sampled
        ]
        for episode in run.load_episodes()
    }
    return Outcome(
        samples,
        [{name: value for name, value in row.items() if not name.startswith(timed)} for row in rows],
        load_file(next((folder / "run" / "checkpoints").glob("*4")) / "model.safetensors"),
        rows,
        said.getvalue(),
    )


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return trained(tmp_path_factory.mktemp("copied"), "inference.backend={name: torch, share_weights: false}")


@pytest.mark.parametrize("overlap", ["false", "true"])
def test_a_run_that_shares_is_the_run_that_copies_to_the_bit(overlap: str, copied: Outcome, tmp_path: Path) -> None:
    shared = trained(tmp_path, "inference.backend={name: torch, share_weights: true}", f"evaluation.overlap={overlap}")
    assert shared.samples == copied.samples
    assert shared.metrics == copied.metrics
    assert shared.weights.keys() == copied.weights.keys()
    assert all(torch.equal(tensor, copied.weights[name]) for name, tensor in shared.weights.items())
    size = sum(tensor.nbytes for tensor in copied.weights.values())
    assert [row["weights/bytes"] for row in copied.rows] == [size] * 4
    assert [row["weights/bytes"] for row in shared.rows] == [0.0] * 4
    assert all(0 < row["seconds/learner/paused"] < row["seconds/learner"] for row in shared.rows)
    assert not any("seconds/learner/paused" in row for row in copied.rows)
    assert all(row["proof/tensors"] for row in shared.rows)
    assert "keeps a copy" not in shared.said


@pytest.mark.parametrize("in_flight", ["keep", "recompute"])
def test_an_asynchronous_run_shares(in_flight: str, tmp_path: Path) -> None:
    made = trained(tmp_path, "rollout.max_staleness=2", f"inference.in_flight={in_flight}", "training.minibatches=2")
    assert max(row["staleness/max"] for row in made.rows) > 0
    assert [row["weights/bytes"] for row in made.rows] == [0.0] * 4
    assert "warning" not in made.said


def test_of_an_adapter_only_the_adapter_comes(tmp_path: Path) -> None:
    stated = trained_adapter(tmp_path)
    assert [row["weights/bytes"] for row in stated[0]] == [stated[1]] * 2


def trained_adapter(folder: Path) -> tuple[list[Mapping[str, float]], int]:
    config = load_config(
        None, f"run.dir={folder}", "run.name=run", "training.lora=4", "training.steps=2", "tasks.eval=null",
        "rollout.tasks_per_step=2", "rollout.group_size=3", "training.device=cpu", environ={},
    )  # fmt: skip
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        trainer.train(answer)
    tensors = load_file(next((folder / "run" / "checkpoints").glob("*2")) / "adapter_model.safetensors")
    rows = [row.metrics for row in open_run(folder / "run").steps()]
    return rows, sum(tensor.nbytes for tensor in tensors.values())


# What the proof finds


class KeepsPrefixes(TorchBackend):
    """Keeps what older weights have computed of a prompt when its weights change under it."""

    def paused(self):
        _, engine = self._running()
        engine._prefixes.clear = lambda: None
        return super().paused()


class ComputesWithCopies(TorchBackend):
    """Has packed the weights once and for all, and tells of those that it shares."""

    async def start(self):
        capabilities = await super().start()
        _, engine = self._running()
        for layer in engine._decoder._network._layers:
            layer._joined = [(weight.clone(), bias) for weight, bias in layer._joined]
        return capabilities


class NeverPauses(TorchBackend):
    """Takes the version of the weights beside the learner's step, and drops nothing."""

    def paused(self):
        _, engine = self._running()
        import contextlib

        @contextlib.contextmanager
        def not_at_all():
            yield
            engine.version = engine._decoder.shared.weights.version

        return not_at_all()


class Copies(TorchBackend):
    """Shares the weights, and lets the learner keep others."""

    def share(self, weights):
        weights.place = lambda name, memory: None
        return super().share(weights)

    async def update_weights(self, weights: Weights) -> int:
        return 0


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (KeepsPrefixes, r"\(stale cache\)"),
        (NeverPauses, r"\(stale cache\)"),
        (ComputesWithCopies, r"\(numeric\): it holds the learner's tensors and computes with something else"),
        (Copies, r"it still holds .* of version 0 \(old\)"),
    ],
)
def test_an_engine_that_keeps_something_old_stops_the_run_within_a_step(
    backend: type, said: str, tmp_path: Path
) -> None:
    part = f"inference.backend={{name: '{__name__}:{backend.__name__}', share_weights: true}}"
    settings = ("rollout.temperature=2", "training.learning_rate=1e-3", "tasks.eval=null")
    with pytest.raises(BackendError, match=f"{STARTS}.*{said}"):
        trained(tmp_path, part, *settings)
