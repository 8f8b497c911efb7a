"""Running a torch backend for the length of a test, and what a plain forward says of its tokens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from agentrl.inference.contract import BackendContext, Chunk, GenerationRequest, InFlight, Sampling
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.engine.engine import Engine

T = TypeVar("T")


@asynccontextmanager
async def serving(
    folder: Path, *, concurrency: int = 8, version: int = 0, in_flight: InFlight = "keep", **options: object
) -> AsyncIterator[TorchBackend]:
    context = BackendContext(folder, version=version, max_concurrency=concurrency, options=options, in_flight=in_flight)
    backend = TorchBackend(context)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


def served(folder: Path, use: Callable[[TorchBackend], Awaitable[T]], **options: Any) -> T:
    """Start a backend, use it, stop it. A request that nobody answers fails the test."""

    async def run() -> T:
        async with serving(folder, **options) as backend, asyncio.timeout(60):
            return await use(backend)

    return asyncio.run(run())


async def chunks(backend: TorchBackend, prompt: Sequence[int], *, stream: bool = False, **sampling: Any) -> list[Chunk]:
    """All chunks of one completion."""
    request = GenerationRequest(prompt, Sampling(**sampling), stream=stream)
    return [chunk async for chunk in backend.generate(request)]


async def complete(backend: TorchBackend, prompt: Sequence[int], **sampling: Any) -> Chunk:
    """One completion, read whole."""
    (chunk,) = await chunks(backend, prompt, **sampling)
    return chunk


async def settled(condition: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@contextmanager
def held(backend: TorchBackend) -> Iterator[None]:
    """Keep the engine from its next step meanwhile: what is asked for in here comes to it at once."""
    entered, leave = threading.Event(), threading.Event()
    assert backend._thread is not None

    def hold(engine: Engine) -> None:
        entered.set()
        leave.wait(20)

    backend._thread.send(hold)
    entered.wait(20)
    try:
        yield
    finally:
        leave.set()


@torch.no_grad()
def plain_logprobs(
    model: PreTrainedModel, prompt: Sequence[int], ids: Sequence[int], temperature: float = 1.0
) -> torch.Tensor:
    """Logprobs ``[tokens, vocabulary]`` of a completion's positions, from one forward over the whole of it."""
    logits = model(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return (logits.double() / temperature).log_softmax(-1)


def off_by(model: PreTrainedModel, prompt: Sequence[int], chunk: Chunk, temperature: float = 1.0) -> float:
    """Largest difference of a completion's logprobs from the plain forward's."""
    expected = plain_logprobs(model, prompt, chunk.ids, temperature)
    chosen = expected.gather(1, torch.tensor(chunk.ids)[:, None])[:, 0]
    return float((chosen - torch.tensor(chunk.logprobs)).abs().max())


@torch.no_grad()
def plain_greedy(model: PreTrainedModel, prompt: Sequence[int], tokens: int) -> tuple[int, ...]:
    """The likeliest token after another, each from a forward over everything before it."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])
