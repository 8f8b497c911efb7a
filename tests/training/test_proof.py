"""Every update is proven: what goes wrong with one stops the run within the step, and the message says what it was."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI
from tests.testing.broken_backends import Stale

from agentrl import Trainer, load_config
from agentrl.config.section import Section
from agentrl.errors import BackendError
from agentrl.inference.contract import Backend, BackendContext, HeldWeights, TensorDigest, Weights
from agentrl.inference.engine.backend import TorchBackend
from agentrl.reporting.plain import PlainReporter
from agentrl.runs.folder import read_summary
from agentrl.runs.reader import open_run
from agentrl.testing import UPDATE_FAULTS, FaultyBackend, ScriptedBackend
from agentrl.testing.backends.reference import Reference, load_reference
from agentrl.testing.backends.weight_updates import tied_model
from agentrl.testing.parts import model_folder
from agentrl.training.proof import Recorded, UpdateProof

STARTS = "the inference engine does not sample from the learner's weights: after the update to version 1 "
NUMBERS = itertools.count()
"""Rewards, of which no two are equal: at a temperature at which tokens differ too, every step changes the weights."""
OLD_ADAPTER = "an old adapter under the right name"
RECORDED = Recorded(list(range(40, 72)), list(range(100, 130)))


class Faulty(FaultyBackend):
    """The torch engine with a fault of the table."""

    class Settings(Section):
        fault: str
        tells: bool = True

    def __init__(self, context: BackendContext, settings: Settings) -> None:
        plain = TorchBackend(replace(context, options={}))
        super().__init__(plain, UPDATE_FAULTS[settings.fault], context.model_folder, tells=settings.tells)


class ComputesWithCopies(TorchBackend):
    """Loads new weights where nothing reads them."""

    async def update_weights(self, weights: Weights) -> None:
        _, engine = self._running()
        for layer in engine._decoder._network._layers:
            layer._joined = [(weight.clone(), bias) for weight, bias in layer._joined]
        await super().update_weights(weights)


async def answer(data, base_url, api_key, http_client):
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client, max_retries=0)
    messages = [{"role": "user", "content": data["question"]}]
    await client.chat.completions.create(model="policy", messages=messages, max_tokens=4)
    return float(next(NUMBERS))


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., tuple[Any, str]]:
    """Train three steps of two groups; returns the summary, and what was narrated."""

    def train(*settings: str) -> tuple[Any, str]:
        stream = io.StringIO()
        brief = ("evaluation.every=0", "training.checkpoint_every=0", "tasks.eval=null", "training.steps=3")
        small = (
            "rollout.tasks_per_step=2",
            "rollout.group_size=2",
            "training.learning_rate=1e-4",
            "rollout.temperature=2",
        )
        config = load_config(None, f"run.dir={tmp_path}", "run.name=run", *brief, *small, *settings, environ={})
        with Trainer(config, reporter=PlainReporter(stream)) as trainer:
            return trainer.train(answer), stream.getvalue()

    return train


@pytest.mark.parametrize(
    ("fault", "tells"),
    [(name, True) for name in UPDATE_FAULTS]
    + [(name, False) for name in ("half of the numbers", "stale cache", OLD_ADAPTER)],
)
def test_a_run_stops_within_a_step_and_says_what_went_wrong(fault: str, tells: bool, train, tmp_path) -> None:
    said = UPDATE_FAULTS[fault].told if tells else UPDATE_FAULTS[fault].scored
    part = f"{{name: '{__name__}:Faulty', fault: '{fault}', tells: {str(tells).lower()}}}"
    adapter = ("training.lora=8", "training.learning_rate=1e-2") if UPDATE_FAULTS[fault].is_old_adapter else ()
    with pytest.raises(BackendError, match=f"{STARTS}.*({said})"):
        train(f"inference.backend={part}", *adapter)
    assert read_summary(tmp_path / "run" / "summary.json").steps == 1


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (Stale, r"\(stale cache\)"),
        (ComputesWithCopies, r"\(numeric\): it holds the learner's tensors and computes with something else"),
    ],
)
def test_what_no_digest_shows_stops_a_run_too(backend: type, said: str, train) -> None:
    with pytest.raises(BackendError, match=f"{STARTS}.*{said}"):
        train(f"inference.backend={{name: '{backend.__module__}:{backend.__name__}', share_weights: false}}")


@pytest.mark.parametrize("asynchronous", [(), ("rollout.max_staleness=1", "inference.in_flight=recompute")])
def test_a_sound_engine_proves_every_update_of_a_run(asynchronous: tuple[str, ...], train, tmp_path) -> None:
    summary, said = train(*asynchronous)
    assert summary.steps == 3
    assert "warning" not in said
    rows = [row.metrics for row in open_run(tmp_path / "run").steps()]
    tensors = sum(1 for _ in load_reference(model_folder()).model.named_parameters())
    assert [row["proof/tensors"] for row in rows] == [tensors] * 3
    changed = [row for row in rows if row["policy/updated"]]  # equal samples of a group may cancel each other out
    assert changed[0] is rows[0]
    assert all(row["proof/moved"] > 4 * row["proof/noise"] for row in changed)
    assert all(abs(row["proof/followed"] - 1) < 0.01 for row in changed)
    assert all(row["seconds/proof"] > 0 for row in rows)


@pytest.mark.parametrize("in_flight", ["keep", "recompute"])
def test_identical_weights_of_new_versions_keep_the_ratio_at_1(in_flight: str, train, tmp_path) -> None:
    """Tokens of older versions are trained, and completions under way go on across updates that change nothing."""
    still = ("training.learning_rate=0", "rollout.max_staleness=2", f"inference.in_flight={in_flight}")
    summary, said = train(*still, "training.steps=4", "rollout.max_tokens=24")
    assert summary.steps == 4
    rows = [row.metrics for row in open_run(tmp_path / "run").steps()]
    assert max(row["staleness/max"] for row in rows) > 0
    assert all(abs(row["policy/ratio_mean"] - 1) < 1e-6 and row["policy/ratio_max"] < 1 + 1e-5 for row in rows)
    assert all(row["proof/tensors"] and row["proof/moved"] == 0 for row in rows)
    assert "warning" not in said


# The proof by itself, beside an engine that is started once for each test


@asynccontextmanager
async def proving(
    build: Callable[[BackendContext], Backend], folder: Path
) -> AsyncIterator[tuple[UpdateProof, Backend, Reference, list[str]]]:
    backend, warnings = build(BackendContext(folder)), []
    await backend.start()
    try:
        proof, reference = UpdateProof(warnings.append), load_reference(folder)
        with reference.weights as weights:
            await proof.prepare(backend, weights, RECORDED)
        yield proof, backend, reference, warnings
    finally:
        await backend.stop()


async def update(proof: UpdateProof, backend: Backend, new: Reference) -> dict[str, float]:
    with new.weights as weights:
        await backend.update_weights(weights)
        return await proof.prove(backend, weights, RECORDED.prompt_ids)


@pytest.mark.parametrize(
    "fault", [name for name, fault in UPDATE_FAULTS.items() if fault.scored and not fault.is_old_adapter]
)
def test_an_engine_that_cannot_tell_is_found_out_by_recorded_tokens(fault: str) -> None:
    def build(context: BackendContext) -> Backend:
        return FaultyBackend(TorchBackend(context), UPDATE_FAULTS[fault], context.model_folder, tells=False)

    async def scenario() -> None:
        async with proving(build, model_folder()) as (proof, backend, reference, warnings):
            with pytest.raises(BackendError, match=f"{STARTS}.*{UPDATE_FAULTS[fault].scored}"):
                await update(proof, backend, reference.changed())
            assert len(warnings) == 1
            assert "no digests of its tensors: it is told to keep them to itself" in warnings[0]

    asyncio.run(scenario())


def test_a_head_that_lost_its_tie_is_found(tmp_path: Path) -> None:
    class Forgetful(TorchBackend):
        async def update_weights(self, weights: Weights) -> None:
            _, engine = self._running()
            model = engine._decoder.model
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
            head = model.lm_head.weight

            class WithHead:
                version = weights.version
                adapter = None

                def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
                    yield from weights.tensors()
                    yield "lm_head.weight", head

            await super().update_weights(WithHead())

    async def scenario() -> None:
        folder = tied_model(load_reference(model_folder()), tmp_path / "tied")
        async with proving(TorchBackend, folder) as (proof, backend, reference, _):
            for _ in range(2):
                assert (await update(proof, backend, reference := reference.changed()))["proof/followed"] > 0.99
        async with proving(Forgetful, folder) as (proof, backend, reference, _):
            lost = "holds lm_head.weight apart from the tensor that it is tied to, and did not renew it"
            with pytest.raises(BackendError, match=f"{STARTS}.*{lost}"):
                await update(proof, backend, reference.changed())

    asyncio.run(scenario())


def test_a_tied_tensor_may_be_held_under_its_other_name_or_twice(tmp_path: Path) -> None:
    class Other(TorchBackend):
        def __init__(self, context: BackendContext, keeps: bool) -> None:
            super().__init__(context)
            self.keeps = keeps

        async def held_weights(self) -> HeldWeights:
            held = await super().held_weights()
            tensors = dict(held.tensors)
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
            if not self.keeps:
                del tensors["model.embed_tokens.weight"]
            return replace(held, tensors=tensors)

    async def scenario() -> None:
        folder = tied_model(load_reference(model_folder()), tmp_path / "tied")
        for keeps in (False, True):
            async with proving(lambda context, keeps=keeps: Other(context, keeps), folder) as (proof, backend, old, _):
                await update(proof, backend, old.changed())

    asyncio.run(scenario())


def test_an_engine_in_16_bits_proves_updates_of_every_size() -> None:
    """Its noise is 10,000 times that of 32 bits, and each update is shown by the digests of what it serves with."""

    def build(context: BackendContext) -> Backend:
        return TorchBackend(replace(context, options={"dtype": "bfloat16"}))

    async def scenario() -> None:
        async with proving(build, model_folder()) as (proof, backend, reference, _):
            for version, size in enumerate((1e-5, 1e-3, 1e-2, 1e-5, 3e-2), 1):
                reference = moved(reference, version, size)
                metrics = await update(proof, backend, reference)
                assert metrics["proof/noise"] > 1e-4
                assert metrics["proof/tensors"] > 20

    asyncio.run(scenario())


def moved(reference: Reference, version: int, size: float) -> Reference:
    torch.manual_seed(version)
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std(), alpha=size)
    return Reference(reference.model, reference.folder, version)


def test_an_update_without_a_change_is_proven_by_its_version_and_digests() -> None:
    async def scenario() -> None:
        async with proving(TorchBackend, model_folder()) as (proof, backend, reference, _):
            metrics = await update(proof, backend, Reference(reference.model, reference.folder, 1))
            assert metrics["proof/moved"] == 0
            assert "proof/followed" not in metrics

    asyncio.run(scenario())


def test_other_tensors_than_the_learners_are_found_before_the_first_update(tmp_path: Path) -> None:
    async def scenario() -> None:
        backend = TorchBackend(BackendContext(model_folder()))
        await backend.start()
        try:
            other = load_reference(model_folder())
            with torch.no_grad():
                other.model.model.norm.weight[7] += 1e-6
            with other.weights as weights, pytest.raises(BackendError, match=r"before the first .*model\.norm\.weight"):
                await UpdateProof([].append).prepare(backend, weights, RECORDED)
        finally:
            await backend.stop()

    asyncio.run(scenario())


def test_a_completion_that_fails_is_no_proof_against_the_engine() -> None:
    class Busy(TorchBackend):
        async def generate(self, request):
            raise BackendError("no slot")
            yield

    async def scenario() -> None:
        async with proving(Busy, model_folder()) as (proof, backend, reference, _):
            metrics = await update(proof, backend, reference.changed())
            assert "proof/completion" not in metrics
            assert metrics["proof/followed"] > 0.99

    asyncio.run(scenario())


# Movements, without an engine


class Scores:
    """Learner and engine with given log-probabilities."""

    version = 0
    adapter = None

    def __init__(self, learner: np.ndarray, engine: np.ndarray) -> None:
        self.learner, self.engine = learner, engine

    def names(self) -> list[str]:
        return []

    def digests(self, dtypes: dict[str, str]) -> dict[str, TensorDigest]:
        return {}

    def logprobs(self, ids: list[int]) -> np.ndarray:
        return self.learner[: len(ids) - 1]

    async def held_weights(self) -> HeldWeights:
        return HeldWeights(self.version, None)

    async def score(self, ids: list[int]) -> np.ndarray:
        return self.engine[: len(ids) - 1]

    async def generate(self, request):
        raise BackendError("none")
        yield


def proven(
    before: np.ndarray, noise: np.ndarray, learner: np.ndarray, engine: np.ndarray, kind: type[Scores] = Scores
) -> dict[str, float]:
    async def scenario() -> dict[str, float]:
        proof = UpdateProof([].append)
        first = kind(before, before + noise)
        await proof.prepare(first, first, RECORDED)
        then = kind(learner, engine)
        then.version = 1
        return await proof.prove(then, then, RECORDED.prompt_ids)

    return asyncio.run(scenario())


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1e-5, 1e-4, 0.03]), factor=st.floats(5, 1e4))
def test_beyond_four_times_the_noise_half_an_update_is_told_from_a_whole_one(seed, size, factor) -> None:
    random = np.random.default_rng(seed)
    count = 31  # as many as are scored
    before = -random.exponential(2.0, count)
    noises = random.normal(0, size, (2, count))
    movement = random.normal(0, 1, count)
    movement *= factor * np.sqrt(np.mean(noises[0] ** 2)) / np.sqrt(np.mean(movement**2))
    learner = before + movement
    assert proven(before, noises[0], learner, learner + noises[1])["proof/followed"] == pytest.approx(1, abs=0.25)
    with pytest.raises(BackendError, match=r"\(numeric\)"):
        proven(before, noises[0], learner, before + movement / 2 + noises[1])
    with pytest.raises(BackendError, match="computes with the weights of version 0"):
        proven(before, noises[0], learner, before + noises[1] / 4)
    still = before + movement / factor  # as much as the noise: nothing can be told of it
    assert "proof/followed" not in proven(before, noises[0], still, before + noises[1])


class Merging(Scores):
    """Weights with an adapter, and an engine in 16 bits that merges it: ``learner`` has its numbers apart."""

    def __init__(self, learner: np.ndarray, engine: np.ndarray) -> None:
        super().__init__(learner, engine)
        self.adapter = self

    def merged_logprobs(self, ids: list[int], dtypes: dict[str, str]) -> np.ndarray:
        assert dtypes == {"weight": "bfloat16"}
        return self.engine[: len(ids) - 1]

    def digests(self, dtypes: dict[str, str]) -> dict[str, TensorDigest]:
        return {name: TensorDigest(dtype, (1,), "same") for name, dtype in dtypes.items()}

    async def held_weights(self) -> HeldWeights:
        return HeldWeights(self.version, {"weight": TensorDigest("bfloat16", (1,), "same")})


def test_what_rounding_takes_of_an_adapter_that_is_merged_in_16_bits_is_no_fault() -> None:
    """No noise shows it that was measured while the adapter was zero."""
    random = np.random.default_rng(0)
    before, movement = -random.exponential(2.0, 31), random.normal(0, 0.1, 31)
    metrics = proven(before, random.normal(0, 0.01, 31), before + movement, before + 0.6 * movement, kind=Merging)
    assert metrics["proof/followed"] == pytest.approx(1, abs=0.25)


def test_the_script_backend_says_that_it_cannot_tell() -> None:
    held = asyncio.run(ScriptedBackend("42").held_weights())
    assert held.tensors is None
    assert held.inability
