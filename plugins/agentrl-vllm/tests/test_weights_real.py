"""Weight updates of a real server: exact for what is under way, and whole or not at all, whatever goes wrong."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import begun, stopped_by
from real import KEYS, START_S
from safetensors.torch import load_file, save_file
from servers import kill_workers

from agentrl.errors import BackendError
from agentrl.inference.contract import Chunk, HeldWeights
from agentrl.testing.backends.bench import Bench, ask, build_backend, joined, started_bench
from agentrl.testing.backends.reference import Reference
from agentrl.testing.parts import model_folder
from agentrl_vllm import control
from agentrl_vllm.client import Client

pytestmark = pytest.mark.real

EXACT = 1e-4
LONG = 900
"""Tokens that take a server longer than an update does."""


@pytest.fixture(scope="module")
def served() -> Iterator[Bench]:
    def build(folder: Path) -> object:
        return build_backend("agentrl_vllm.backend:VllmBackend", KEYS, folder, concurrency=8)

    with started_bench(build, model_folder("tiny"), timeout=START_S, start_timeout=START_S) as table:
        yield table


class Changed:
    """Weights whose folder is not what it should be."""

    adapter = None

    def __init__(self, like: Reference, spoil: Callable[[Path], None]) -> None:
        self.version, self.spoil, self.weights = like.version, spoil, like.weights

    def save(self, folder: Path) -> None:
        self.weights.save(folder)
        self.spoil(folder)


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


async def across(served: Bench, new: Reference) -> list[Chunk]:
    """Four completions, during which the weights change to ``new``."""
    events = [asyncio.Event() for _ in range(4)]
    flying = [asyncio.ensure_future(flown(served, number, event)) for number, event in enumerate(events)]
    await asyncio.gather(*(event.wait() for event in events))
    with new.weights as weights:
        await served.backend.update_weights(weights)
    return await asyncio.gather(*flying)


def switch_of(chunk: Chunk, old: Reference, new: Reference) -> int:
    """The index of the first token of ``new``."""
    switch = chunk.versions.index(new.version)
    assert switch > 0
    assert chunk.versions == (old.version,) * switch + (new.version,) * (LONG - switch)
    return switch


def kept(old: Reference, new: Reference, prompt: list[int], ids: tuple[int, ...], switch: int) -> torch.Tensor:
    """The logprobs of ``ids`` from ``switch`` on, where ``old`` has computed the keys and values of all before.

    Of the last token that ``old`` sampled there are none yet when the weights change.
    """
    before = torch.tensor([[*prompt, *ids[: switch - 1]]])
    with torch.inference_mode():
        cache = old.model(before, use_cache=True).past_key_values
        logits = new.model(torch.tensor([ids[switch - 1 : -1]]), past_key_values=cache).logits[0]
    return logits.double().log_softmax(-1).gather(1, torch.tensor(ids[switch:])[:, None])[:, 0]


@pytest.mark.parametrize("recompute", [False, True], ids=["with what it has", "computed again"])
def test_what_is_under_way_goes_on_under_the_new_weights(recompute: bool, served: Bench, monkeypatch) -> None:
    """Every layer changes: tokens after the update show which weights computed what they look back at."""
    monkeypatch.setattr(served.backend._running.weights, "_under_way", "recompute" if recompute else "keep")
    old, new = served.reference, served.reference.changed()
    chunks = served.run(across(served, new), "completions across an update")
    served.reference = new
    for prompt, chunk in zip(served.prompts(), chunks, strict=False):
        switch = switch_of(chunk, old, new)
        assert max(old.distances(prompt, chunk)[:switch]) < EXACT
        if recompute:
            assert max(new.distances(prompt, chunk)[switch:]) < EXACT
        else:
            expected = kept(old, new, prompt, chunk.ids, switch)
            assert (expected - torch.tensor(chunk.logprobs[switch:])).abs().max() < EXACT
            assert max(new.distances(prompt, chunk)[switch:]) > 100 * EXACT
    exact(served)


def test_equal_weights_of_another_version_change_no_probability_of_what_is_under_way(served: Bench) -> None:
    """A ratio of 1: a step at learning rate 0 makes a version, and no difference."""
    old = served.reference
    new = replace(old, version=old.version + 1)
    chunks = served.run(across(served, new), "completions across an update")
    served.reference = new
    for prompt, chunk in zip(served.prompts(), chunks, strict=False):
        switch_of(chunk, old, new)
        assert new.off_by(prompt, chunk) < EXACT


def test_a_new_request_finds_nothing_in_the_cache_that_older_weights_computed(served: Bench) -> None:
    """Neither of its own prompt nor of what is under way, whose text holds keys and values of both."""
    old, new = served.reference, served.reference.changed()
    long = [token for prompt in served.prompts() for token in prompt] * 2
    served.complete(ask(long, max_tokens=200))
    chunks = served.run(across(served, new), "completions across an update")
    served.reference = new
    prompts = [long, *([*prompt, *chunk.ids[:300]] for prompt, chunk in zip(served.prompts(), chunks, strict=False))]
    for prompt, chunk in zip(prompts, served.complete(*(ask(each, max_tokens=6) for each in prompts)), strict=True):
        assert new.off_by(prompt, chunk) < EXACT < old.off_by(prompt, chunk)


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


def older(served: Bench, names: Callable[[str], bool]) -> Callable[..., Any]:
    """A load that leaves the tensors of these names as they are."""
    old = {name: tensor.clone() for name, tensor in served.reference.model.state_dict().items() if names(name)}
    assert old
    load = control.replace

    async def replace(client: Client, url: str, folder: Path) -> None:
        mixed = Path(shutil.copytree(folder, folder.with_name("mixed"), dirs_exist_ok=True))
        edit(lambda tensors: tensors.update(old))(mixed)
        await load(client, url, mixed)

    return replace


async def relabelled(client: Client, url: str, version: int) -> None:
    await STAMP(client, url, version)
    await client.post(url, "/update_weight_version", {"new_version": str(version - 1)})


STAMP = control.stamp
HEAD = "lm_head.weight"


def is_upper(name: str) -> bool:
    return "layers.1" in name or name == HEAD


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("wrong version", r"it serves version \d+, and was given version \d+ \(wrong version\)"),
        ("old tensor", r"it still holds lm_head\.weight of version \d+ \(old\)"),
        ("half update", r"it still holds (lm_head|model\.layers\.1).* others of version \d+ \(old\)"),
        ("half update, numeric", r"\(numeric\): a part of the new weights did not arrive"),
        ("stale prefix cache", r"a prefix cache that older weights computed \(stale cache\)"),
    ],
)
def test_a_server_without_the_learners_weights_stops_the_run_at_once(
    fault: str, message: str, served: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = served.backend
    with served.reference.weights as weights:
        proof = served.run(begun(backend, weights), "the beginning of a run")
    if fault == "half update, numeric":
        version = served.reference.version + 1
        monkeypatch.setattr(backend, "held_weights", lambda: told(HeldWeights(version, None, "nobody asks it")))
    if fault == "stale prefix cache":
        monkeypatch.setattr(backend._running.weights, "salt", lambda replica: "any")
        served.update()
    elif fault == "wrong version":
        monkeypatch.setattr(control, "stamp", relabelled)
    else:
        names = {"old tensor": HEAD.__eq__}.get(fault, is_upper)
        monkeypatch.setattr(control, "replace", older(served, names))
    new = served.reference.changed()
    with new.weights as weights:
        ended = served.run(stopped_by(backend, proof, weights), "an update that goes wrong")
    assert re.search(message, ended), ended
    monkeypatch.undo()
    served.reference = new
    served.update()
    exact(served)


async def told(held: HeldWeights) -> HeldWeights:
    return held
