"""Weight updates of a real server: exact for what is under way, and whole or not at all, whatever goes wrong."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest
from real import KEYS, START_S
from safetensors.torch import load_file, save_file

from agentrl.errors import BackendError
from agentrl.inference.contract import Chunk
from agentrl.testing.backends.bench import Bench, ask, build_backend, joined, started_bench
from agentrl.testing.backends.reference import Reference
from agentrl.testing.parts import model_folder
from agentrl_vllm import control

pytestmark = pytest.mark.real

EXACT = 1e-4
LONG = 900
"""Tokens that take a server longer than an update does."""


@pytest.fixture(scope="module")
def served() -> Iterator[Bench]:
    def build(folder: Path) -> object:
        return build_backend("agentrl_vllm.backend:VllmBackend", {**KEYS, "probe_every": 1}, folder, concurrency=8)

    with started_bench(build, model_folder("tiny"), timeout=START_S, start_timeout=START_S) as table:
        yield table


class Changed:
    """Weights whose folder or logprobs are not what they should be."""

    def __init__(self, like: Reference, spoil: Callable[[Path], None], lie: float = 0.0) -> None:
        self.version, self.spoil, self.lie = like.version, spoil, lie
        self.weights = like.weights
        self.tensors = self.weights.tensors

    def save(self, folder: Path) -> None:
        self.weights.save(folder)
        self.spoil(folder)

    def logprobs(self, ids: list[int]) -> list[float]:
        return [logprob + self.lie for logprob in self.weights.logprobs(ids)]


def edit(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def exact(served: Bench) -> None:
    """The server has the reference's weights, whole."""
    for compared in served.sample(max_tokens=8):
        assert set(compared.chunk.versions) == {served.reference.version}
        assert compared.off_by < EXACT


async def flown(served: Bench, number: int, begun: asyncio.Event) -> Chunk:
    request = ask(served.prompts()[number], stream=True, max_tokens=LONG, seed=number)
    async with aclosing(served.backend.generate(request)) as stream:
        chunks = [await anext(stream)]
        begun.set()
        chunks += [chunk async for chunk in stream]
    return joined(chunks)


def test_what_is_under_way_goes_on_as_if_the_new_weights_had_read_its_text(served: Bench) -> None:
    """Every layer changes: tokens after the update owe nothing to what the old weights computed of those before."""
    old, new = served.reference, served.reference.changed()

    async def scenario() -> list[Chunk]:
        events = [asyncio.Event() for _ in range(4)]
        flying = [asyncio.ensure_future(flown(served, number, event)) for number, event in enumerate(events)]
        await asyncio.gather(*(event.wait() for event in events))
        with new.weights as weights:
            await served.backend.update_weights(weights)
        return await asyncio.gather(*flying)

    chunks = served.run(scenario(), "completions across an update")
    served.reference = new
    for prompt, chunk in zip(served.prompts(), chunks, strict=False):
        switch = chunk.versions.index(new.version)
        assert chunk.versions == (old.version,) * switch + (new.version,) * (LONG - switch)
        assert switch > 0
        assert max(old.distances(prompt, chunk)[:switch]) < EXACT
        assert max(new.distances(prompt, chunk)[switch:]) < EXACT


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (edit(lambda tensors: tensors.pop("lm_head.weight")), "the new weights lack lm_head.weight"),
        (edit(lambda tensors: tensors.update(more=tensors["lm_head.weight"].clone())), "the model has no more"),
        (edit(lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"][1:]})), "and should be"),
        (cut_short, "bytes and should have"),
        (lambda folder: shutil.rmtree(folder), "is no folder that this server can see"),
    ],
    ids=["a tensor missing", "one too many", "a wrong shape", "a file cut short", "no folder"],
)
def test_weights_that_do_not_fit_reach_no_generation(spoil, fault, served: Bench) -> None:
    with pytest.raises(BackendError, match=fault):
        served.run(served.backend.update_weights(Changed(served.reference.changed(), spoil)))
    exact(served)
    served.update()
    exact(served)


def test_a_server_killed_while_it_is_paused_comes_back_with_the_new_weights(served: Bench, monkeypatch) -> None:
    def kill_workers() -> None:
        workers = [each for each in psutil.Process().children(recursive=True) if each.name().startswith("VLLM::")]
        assert workers
        for worker in workers:
            worker.kill()

    async def replace(client, url, folder) -> None:
        kill_workers()
        await whole(client, url, folder)

    whole = control.replace
    monkeypatch.setattr(control, "replace", replace)
    served.update()
    monkeypatch.setattr(control, "replace", whole)
    exact(served)
    served.update()
    exact(served)


def test_a_mismatch_stops_training(served: Bench) -> None:
    new = served.reference.changed()
    with pytest.raises(BackendError, match="it runs another model than the learner"):
        served.run(served.backend.update_weights(Changed(new, lambda folder: None, lie=0.5)))
