"""A run at ``rollout.max_staleness`` 0 is the plain synchronous loop, to the last bit.

So it is however many episodes run at once and wherever they do: in the engine's batch, in which order they end, or in
which process, changes no token, no log-probability, no weight and no metric but times.
"""

from __future__ import annotations

import asyncio
import io
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agentrl import Trainer, load_config, open_run
from agentrl.algorithms.batch import build_batch
from agentrl.algorithms.building import build_algorithm
from agentrl.config.models import Config
from agentrl.learner.learner import Learner
from agentrl.plugins import Plugins
from agentrl.reporting.plain import PlainReporter
from agentrl.rollout.contract import Episode, EpisodeKey, Group
from agentrl.training.backends import build_backend
from agentrl.training.parts import Parts, resolve_parts
from agentrl.training.requests import group_request
from agentrl.training.serving import serve
from agentrl.training.task_order import TaskOrder

STEPS, TASKS, GROUP = 3, 3, 4
AGENT = '''
import asyncio
import hashlib

from openai import AsyncOpenAI


async def agent(data, *, base_url, api_key, http_client):
    """Two turns with a pause between them that the first decides; what it is paid for changes with every token."""
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages = [{"role": "user", "content": data["question"]}]
    text = ""
    for _ in range(2):
        reply = await client.chat.completions.create(model="policy", messages=messages, max_tokens=6)
        text = reply.choices[0].message.content or ""
        digest = hashlib.sha256(text.encode()).digest()
        await asyncio.sleep(digest[0] / 10_000)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "And then?"}]
    return digest[1] / 255
'''


@dataclass(frozen=True)
class Outcome:
    """What a run computed, to the bit."""

    samples: Mapping[EpisodeKey, object]
    """By episode: ids, log-probabilities and versions of what was sampled, and the reward."""
    metrics: Sequence[Mapping[str, float]]
    """Of each step, without times."""
    weights: Mapping[str, bytes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the runs are, while torch has one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("synchronous")
    (folder / "agent.py").write_text(AGENT)
    rows = [{"question": f"What is {number} + {7 * number}?"} for number in range(2 * TASKS)]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield folder
    torch.set_num_threads(threads)


def _config(folder: Path, name: str, *settings: str) -> Config:
    return load_config(
        None,
        f"run={{dir: {folder}, name: {name}}}",
        f"agent={folder}/agent.py:agent",
        f"tasks={{train: {folder}/tasks.jsonl, eval: null}}",
        f"rollout.tasks_per_step={TASKS}",
        f"rollout.group_size={GROUP}",
        f"training.steps={STEPS}",
        "training.checkpoint_every=0",
        "training.device=cpu",
        "inference.backend={name: torch, device: cpu, reproducible: true}",
        *settings,
        environ={},
    )


@pytest.fixture(scope="module")
def plain(folder: Path) -> Outcome:
    return asyncio.run(_plain_loop(_config(folder, "plain")))


async def _plain_loop(config: Config) -> Outcome:
    """One episode after another, a step, the next."""
    plugins = Plugins()
    parts: Parts = resolve_parts(config, plugins)
    algorithm = build_algorithm(plugins, config.algorithm)
    learner = Learner(parts.model_folder, config.training, algorithm.loss, config.seed)
    order = TaskOrder(parts.train_tasks, config.seed)
    backend = build_backend(parts, version=0)
    samples: dict[EpisodeKey, object] = {}
    metrics: list[Mapping[str, float]] = []

    async def finished(episode: Episode) -> None:
        raise AssertionError("nothing is dispatched")

    async with serve(parts, backend, finished=finished, warn=pytest.fail, trains=True) as serving:
        assert serving.capabilities.reproducible
        for step in range(STEPS):
            groups = []
            for ordinal in range(step * TASKS, (step + 1) * TASKS):
                request = group_request(config, order, ordinal, lambda: learner.version)
                keys = [EpisodeKey("train", ordinal, request.task, sample) for sample in request.samples]
                run = serving.dispatcher.runner.run_episode
                episodes = [await run(key, request.data, request.settings(key)) for key in keys]
                samples |= {episode.key: _bits(episode) for episode in episodes}
                groups.append(Group(request.task, tuple(episodes)))
            batch, account = build_batch(groups, algorithm, longest=config.training.pass_tokens)
            metrics.append({**account.counts, **learner.step(batch).metrics})
            with learner.lend("the engine") as weights:
                await serving.backend.update_weights(weights)
    weights = {name: _bytes(tensor) for name, tensor in learner.model.state_dict().items()}
    return Outcome(samples, [_untimed(each) for each in metrics], weights)


def _trained(config: Config) -> Outcome:
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        summary = trainer.train()
    run = open_run(Path(config.run.dir) / str(config.run.name))
    samples = {episode.key: _bits(episode) for episode in run.load_episodes(phase="train")}
    metrics = [_untimed(line.metrics) for line in run.metrics() if line.step]
    weights = load_file(Path(summary.checkpoint or "") / "model.safetensors")
    return Outcome(samples, metrics, {name: _bytes(tensor) for name, tensor in weights.items()})


def _bits(episode: Episode) -> object:
    spans = [(span.ids, span.sampled) for span in episode.tree.spans]
    sampled = [
        (ids, struct.pack(f"{len(of.logprobs)}d", *of.logprobs), of.versions) for ids, of in spans if of is not None
    ]
    assert sampled, episode.failure
    return [ids for ids, _ in spans], sampled, episode.reward


def _untimed(metrics: Mapping[str, float]) -> dict[str, float]:
    return {
        name: value for name, value in metrics.items() if not name.startswith(("seconds/", "episode/seconds", "cost/"))
    }


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


@pytest.fixture(scope="module")
def one(folder: Path) -> Outcome:
    """A run of one episode at a time."""
    return _trained(_config(folder, "one", "rollout.concurrency=1"))


def test_a_run_without_staleness_is_the_plain_loop(plain: Outcome, one: Outcome) -> None:
    assert one.samples == plain.samples
    assert one.weights == plain.weights
    assert all(metrics["policy/updated"] for metrics in plain.metrics)
    for metrics, expected in zip(one.metrics, plain.metrics, strict=True):
        assert {name: metrics[name] for name in expected} == expected


@pytest.mark.parametrize(
    "rollout",
    [
        ("rollout.concurrency=5",),
        ("rollout.concurrency=64",),
        ("rollout.concurrency=5", "rollout.mode=subproc", "rollout.max_workers=2"),
    ],
    ids=["five", "all", "five in workers"],
)
def test_how_many_episodes_run_at_once_changes_nothing(
    folder: Path, one: Outcome, rollout: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    found = _trained(_config(folder, request.node.callspec.id.replace(" ", "-"), *rollout))
    assert found.samples == one.samples
    assert found.weights == one.weights
    assert found.metrics == one.metrics


def test_without_a_reproducible_engine_it_does(folder: Path, one: Outcome) -> None:
    found = _trained(_config(folder, "off", "rollout.concurrency=64", "inference.backend.reproducible=false"))
    assert found.samples.keys() == one.samples.keys()
    assert found.samples != one.samples
    assert found.weights != one.weights
