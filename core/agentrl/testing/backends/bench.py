"""The bench of a backend's suite: the started backend beside the model that its tokens are compared with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pytest

from agentrl.errors import ConfigError
from agentrl.inference.contract import (
    AdapterContext,
    Backend,
    BackendContext,
    Capabilities,
    Chunk,
    GenerationRequest,
    InFlight,
    Sampling,
)
from agentrl.plugins import Plugins
from agentrl.testing.backends.reference import Reference, load_reference
from agentrl.testing.loop_thread import LoopThread
from agentrl.testing.parts import MISSING, PartName, as_part, failing_tests, model_folder, required
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer

if TYPE_CHECKING:
    import torch

__all__ = [
    "BackendSuite",
    "Bench",
    "Compared",
    "ask",
    "build_backend",
    "joined",
    "needs",
    "needs_temperature",
    "needs_training",
    "read",
    "started_bench",
]

Result = TypeVar("Result")

QUESTIONS = (
    "What is 12 + 30?",
    "What is 7 * 8? Say it in words, please, and then once more as a number.",
    "Hello",
    "What is 12 + 31?",
    "Tell me about the sea.",
    "12 12 12 12 12 12 12 12",
)


def build_backend(
    backend: PartName,
    options: Mapping[str, Any],
    folder: Path,
    *,
    version: int = 0,
    concurrency: int,
    in_flight: InFlight = "keep",
    adapter: AdapterContext | None = None,
) -> Backend:
    """Returns the backend that ``backend`` and ``options`` name, on a model folder, not started.

    ``adapter`` is what one is told that takes adapters.
    """
    named = {"name": backend} if isinstance(backend, str) else backend
    part = as_part({**named, **options})
    plugins = Plugins()
    if adapter is not None and not getattr(plugins.get("backends", part.name), "takes_adapters", False):
        adapter = None
    context = BackendContext(
        folder,
        version=version,
        max_concurrency=concurrency,
        options=part.options,
        in_flight=in_flight,
        adapter=adapter,
    )
    built: Backend = plugins.build("backends", part, context=context)
    return built


def ask(prompt: Sequence[int], *, stream: bool = False, **sampling: Any) -> GenerationRequest:
    """Returns a request for one completion; ``sampling`` are fields of ``Sampling``."""
    return GenerationRequest(prompt, Sampling(**sampling), stream=stream)


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """Returns the chunks of one completion as one chunk."""
    return Chunk(
        ids=tuple(token for chunk in chunks for token in chunk.ids),
        logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        versions=tuple(version for chunk in chunks for version in chunk.versions),
        top_logprobs=tuple(top for chunk in chunks for top in chunk.top_logprobs),
        finish=chunks[-1].finish,
        stop_string=chunks[-1].stop_string,
    )


async def read(backend: Backend, request: GenerationRequest) -> Chunk:
    """Returns one completion, whole. Raises ``AssertionError`` where its chunks do not make one."""
    async with aclosing(backend.generate(request)) as stream:
        chunks = [chunk async for chunk in stream]
    assert chunks, "a completion ended without a chunk"
    assert [chunk.finish is None for chunk in chunks[:-1]] == [True] * (len(chunks) - 1), "`finish` is set too early"
    assert chunks[-1].finish is not None, "the last chunk of a completion does not say why it ended"
    return joined(chunks)


@dataclass(frozen=True, slots=True)
class Compared:
    """A completion, and the log-probabilities ``[tokens, vocabulary]`` that the model gives at its positions."""

    prompt: list[int]
    chunk: Chunk
    expected: torch.Tensor

    @property
    def chosen(self) -> torch.Tensor:
        """``[tokens]``: those of the sampled tokens."""
        return self.expected[range(len(self.chunk.ids)), list(self.chunk.ids)]

    @property
    def off_by(self) -> float:
        """The largest distance of a token's logprob from the model's."""
        return float((self.chosen - self.chosen.new_tensor(self.chunk.logprobs)).abs().max())

    @property
    def behind(self) -> float:
        """The largest distance of a token's logprob, as the model gives it, below that of the likeliest token."""
        return float((self.expected.amax(1) - self.chosen).max())


class Bench:
    """A started backend; ``reference`` is the model whose weights it has now."""

    def __init__(self, backend: Backend, reference: Reference, timeout: float) -> None:
        self.backend = backend
        self.reference = reference
        self.timeout = timeout
        self.loop = LoopThread()
        self.capabilities: Capabilities
        self.renderer: Renderer = load_renderer(reference.folder)

    def run(self, main: Coroutine[Any, Any, Result], what: str = "the backend") -> Result:
        """Returns the result of ``main``. Fails the test where it takes longer than ``timeout``."""
        return self.loop.run(main, deadline_s=self.timeout, what=what)

    def complete(self, *requests: GenerationRequest) -> list[Chunk]:
        """Returns the completions of ``requests``, made all at once. Raises the error of one that fails."""

        async def together() -> list[Chunk]:
            return await asyncio.gather(*(read(self.backend, request) for request in requests))

        return self.run(together(), f"{len(requests)} completions")

    def outcomes(self, *requests: GenerationRequest) -> list[Chunk | BaseException]:
        """As ``complete``, with the error of a request that fails in its place."""

        async def together() -> list[Chunk | BaseException]:
            return await asyncio.gather(*(read(self.backend, each) for each in requests), return_exceptions=True)

        return self.run(together(), f"{len(requests)} completions")

    def sample(self, **sampling: Any) -> list[Compared]:
        """Returns a completion of every prompt, made all at once, each beside the model's log-probabilities."""
        prompts = self.prompts()
        requests = [ask(prompt, **self.seed(number), **sampling) for number, prompt in enumerate(prompts)]
        temperature = sampling.get("temperature", 1.0) or 1.0
        return [
            Compared(prompt, chunk, self.reference.logprobs(prompt, chunk.ids, temperature))
            for prompt, chunk in zip(prompts, self.complete(*requests), strict=True)
        ]

    def seed(self, number: int) -> dict[str, Any]:
        """Returns the field ``seed`` for a request, where the backend honours it."""
        return {"seed": number} if "seed" in self.capabilities.sampling else {}

    def update(self, new: Reference | None = None) -> Reference:
        """Put other weights in place, by default randomly changed ones. Returns the model of the old weights."""
        old, self.reference = self.reference, new or self.reference.changed()
        with self.reference.weights as weights:
            self.run(self.backend.update_weights(weights), "the update of the weights")
        return old

    def prompts(self, count: int = len(QUESTIONS)) -> list[list[int]]:
        """Returns prompts of several lengths, two of which begin alike."""
        return [self.renderer.render([{"role": "user", "content": text}]) for text in QUESTIONS[:count]]

    @property
    def vocabulary(self) -> int:
        """How many token ids the model knows."""
        return int(self.reference.model.config.vocab_size)


@contextmanager
def started_bench(
    build: Callable[[Path], Backend], folder: Path, *, timeout: float, start_timeout: float
) -> Iterator[Bench]:
    """Start a backend on a model folder, yield its bench, and stop it at the end. Times are in seconds."""
    bench = Bench(build(folder), load_reference(folder), timeout)
    try:
        started = bench.backend.start()
        with failing_tests():
            bench.capabilities = bench.loop.run(started, deadline_s=start_timeout, what="the backend's start")
        yield bench
    finally:
        bench.loop.run(bench.backend.stop(), deadline_s=start_timeout, what="the backend's stop")
        bench.loop.close()


class BackendSuite:
    """The class attributes of a backend's suite, and the bench that all its tests share."""

    backend: ClassVar[PartName] = MISSING
    """Its name, or ``{"name": …}`` with its keys."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Further keys of the backend, such as those that make it exact or quick to start."""
    model: ClassVar[str] = "tiny"
    """The model that it serves: a bundled name or a folder. It is run beside the backend on the CPU, in float32."""
    other_models: ClassVar[bool] = True
    """Whether it can be started a second time, on a model that a test makes."""
    concurrency: ClassVar[int] = 4
    """How many completions at once it is started for."""
    tolerance: ClassVar[float] = 1e-4
    """How far a logprob may be from the model's; of two tokens this near to each other, either may be the likeliest."""
    update_tokens: ClassVar[int] = 400
    """Tokens of a completion that is long enough to be under way still after an update of weights."""
    timeout: ClassVar[float] = 30.0
    """Seconds within which a test's requests must be answered."""
    start_timeout: ClassVar[float] = 120.0
    """Seconds that starting and stopping may take."""

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls) -> Iterator[Bench]:
        """The backend, started on ``model``."""
        with cls.started(model_folder(cls.model)) as bench:
            yield bench

    @classmethod
    def built(cls, folder: Path) -> Backend:
        """Returns the backend on a model folder, not started. Fails the test where it cannot be built."""
        with failing_tests():
            return build_backend(required(cls, "backend"), cls.options, folder, concurrency=cls.concurrency)

    @classmethod
    def recomputing(cls, folder: Path) -> Any:
        """As ``started``, of a backend that begins the KV of what is in flight anew; skips one that refuses to."""
        settings: dict[str, Any] = {"concurrency": cls.concurrency, "in_flight": "recompute"}
        try:
            backend = build_backend(required(cls, "backend"), cls.options, folder, **settings)
        except ConfigError as error:
            pytest.skip(f"it goes on with the KV that it has: {error}")
        return started_bench(lambda _: backend, folder, timeout=cls.timeout, start_timeout=cls.start_timeout)

    @classmethod
    def adapting(cls, folder: Path, adapter: AdapterContext) -> Any:
        """As ``started``, of a backend that is told of adapters where it takes them."""

        def built(folder: Path) -> Backend:
            with failing_tests():
                part = required(cls, "backend")
                return build_backend(part, cls.options, folder, concurrency=cls.concurrency, adapter=adapter)

        return started_bench(built, folder, timeout=cls.timeout, start_timeout=cls.start_timeout)

    @classmethod
    def started(cls, folder: Path) -> Any:
        """Returns a context manager that starts the backend on a model folder and yields its bench."""
        return started_bench(cls.built, folder, timeout=cls.timeout, start_timeout=cls.start_timeout)


def needs(bench: Bench, field: str) -> None:
    """Skip a test of a field of ``Sampling`` that the backend does not claim."""
    if field not in bench.capabilities.sampling:
        pytest.skip(f"the backend does not claim to honour {field!r}")


def needs_temperature(bench: Bench, temperature: float) -> None:
    """Skip a test at a temperature that the backend does not claim."""
    if not bench.capabilities.honours_temperature(temperature):
        pytest.skip(f"the backend does not claim to sample at temperature {temperature:g}")


def needs_training(bench: Bench) -> None:
    """Skip a test of what only a backend that is trained with has to do."""
    if not bench.capabilities.trains:
        pytest.skip("the backend does not claim exact logprobs or new weights: capabilities.trains is false")
