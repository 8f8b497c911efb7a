"""The torch engine, with one promise broken at a time."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import torch

from agentrl.errors import BackendError, PromptTooLong
from agentrl.inference.contract import (
    BackendContext,
    Capabilities,
    Chunk,
    GenerationRequest,
    HeldWeights,
    Sampling,
    Weights,
)
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.engine.cache import PrefixCache
from agentrl.learner.lending import LentWeights
from agentrl.learner.policy import Policy
from agentrl.testing.backends.bench import joined


class Sound(TorchBackend):
    """Breaks none."""


class Asking(TorchBackend):
    """Asks the engine for something else than it was asked for."""

    def sampling(self, sampling: Sampling) -> Sampling:
        return sampling

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        async with aclosing(super().generate(replace(request, sampling=self.sampling(request.sampling)))) as stream:
            async for chunk in stream:
                yield chunk


class Hot(Asking):
    """Knows no temperature but 1."""

    def sampling(self, sampling: Sampling) -> Sampling:
        return replace(sampling, temperature=1.0)


class Cold(Asking):
    """Takes the likeliest token, whatever is asked."""

    def sampling(self, sampling: Sampling) -> Sampling:
        return replace(sampling, top_k=1)


class Ending(Asking):
    """Ends at the end of a turn though nobody asked for that."""

    def sampling(self, sampling: Sampling) -> Sampling:
        return replace(sampling, stop_ids=sampling.stop_ids | {540})


class Unstopped(Asking):
    """Claims to know stop strings, and does not look for them."""

    def sampling(self, sampling: Sampling) -> Sampling:
        return replace(sampling, stop=())


class Formless(Asking):
    """Claims to know grammars, and samples as without."""

    def sampling(self, sampling: Sampling) -> Sampling:
        return replace(sampling, grammar=None)


class Unbiased(Asking):
    """Claims to add biases, and does not."""

    def sampling(self, sampling: Sampling) -> Sampling:
        return replace(sampling, logit_bias=())


class Unmasked(Asking):
    """Reports logprobs of another distribution than that of the tokens that a grammar allows."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        async with aclosing(super().generate(request)) as stream:
            async for chunk in stream:
                off = -0.5 if request.sampling.grammar is not None else 0.0
                yield replace(chunk, logprobs=tuple(logprob + off for logprob in chunk.logprobs))


class Unseeded(Asking):
    """Draws by when a request comes."""

    numbers = itertools.count()

    def sampling(self, sampling: Sampling) -> Sampling:
        return replace(sampling, seed=next(self.numbers))


class Cut(Asking):
    """Claims less than it can, and does it silently."""

    async def start(self) -> Capabilities:
        return replace(await super().start(), sampling=frozenset({"temperature", "seed"}))


class Boundless(Asking):
    """Claims a range of temperatures, and takes any as the nearest of them."""

    async def start(self) -> Capabilities:
        return replace(await super().start(), temperatures=(0.5, 2.0))

    def sampling(self, sampling: Sampling) -> Sampling:
        return replace(sampling, temperature=min(max(sampling.temperature, 0.5), 2.0))


class Changing(TorchBackend):
    """Changes what the engine says."""

    def changed(self, chunk: Chunk) -> Chunk:
        return chunk

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        async with aclosing(super().generate(request)) as stream:
            async for chunk in stream:
                yield self.changed(chunk)


class Rounded(Changing):
    """Loses precision."""

    def changed(self, chunk: Chunk) -> Chunk:
        return replace(chunk, logprobs=tuple(round(logprob, 2) for logprob in chunk.logprobs))


class Undated(Changing):
    """Knows the first version only."""

    def changed(self, chunk: Chunk) -> Chunk:
        return replace(chunk, versions=(0,) * len(chunk.ids))


class Swallowing(Changing):
    """Keeps the id that ends a turn to itself."""

    def changed(self, chunk: Chunk) -> Chunk:
        if chunk.finish != "stop" or len(chunk.ids) < 2:
            return chunk
        return replace(
            chunk, ids=chunk.ids[:-1], logprobs=chunk.logprobs[:-1], versions=chunk.versions[:-1], stop_string=None
        )


class Unalternative(Changing):
    """Reports some tokens, not the likeliest."""

    def changed(self, chunk: Chunk) -> Chunk:
        return replace(chunk, top_logprobs=tuple(tuple(reversed(tops)) for tops in chunk.top_logprobs))


class Whole(TorchBackend):
    """Never streams."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        return super().generate(replace(request, stream=False))


class Stale(TorchBackend):
    """Keeps what older weights have computed of a prompt."""

    async def update_weights(self, weights: Weights) -> None:
        kept, PrefixCache.clear = PrefixCache.clear, lambda self: None
        try:
            await super().update_weights(weights)
        finally:
            PrefixCache.clear = kept


class Deaf(TorchBackend):
    """Takes the version of new weights, and not the weights."""

    async def update_weights(self, weights: Weights) -> None:
        _, engine = self._running()
        engine.version = weights.version


class Secretive(TorchBackend):
    """Does not tell of one of its tensors."""

    async def held_weights(self) -> HeldWeights:
        held = await super().held_weights()
        return replace(held, tensors={name: each for name, each in held.tensors.items() if name != "model.norm.weight"})


class Mute(TorchBackend):
    """Tells nothing of its tensors, and not why."""

    async def held_weights(self) -> HeldWeights:
        return replace(await super().held_weights(), tensors=None)


class Remembering(TorchBackend):
    """Tells of its first tensors for ever."""

    first: HeldWeights | None = None

    async def held_weights(self) -> HeldWeights:
        held = await super().held_weights()
        self.first = self.first or held
        return replace(self.first, version=held.version)


class Hoarding(TorchBackend):
    """Goes on with the KV that it has, whatever it is asked for."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(replace(context, in_flight="keep"))


class Lagging(TorchBackend):
    """Scores by new weights, and goes on sampling by the first."""

    newest: Weights | None = None

    async def update_weights(self, weights: Weights) -> None:
        self.newest = copied(weights)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        ids, held = list(request.prompt_ids), []
        async with aclosing(super().generate(request)) as stream:
            async for chunk in stream:
                ids += chunk.ids
                if self.newest is None:
                    yield chunk
                else:
                    held.append(chunk)
        if held:
            yield self.scored(joined(held), ids, self.newest)

    def scored(self, chunk: Chunk, ids: list[int], weights: Weights) -> Chunk:
        logprobs = weights.logprobs(ids)[-len(chunk.ids) :]
        return replace(chunk, logprobs=tuple(logprobs), versions=(weights.version,) * len(chunk.ids))


def copied(weights: Weights) -> Weights:
    """The same weights in memory of their own, for as long as they are wanted."""
    return LentWeights(Policy(copy.deepcopy(weights._policy.model)), weights.version, Path(), borrower="nobody")


class Keeping(TorchBackend):
    """Goes on using weights that it no longer has."""

    newest: Weights | None = None

    async def update_weights(self, weights: Weights) -> None:
        await super().update_weights(weights)
        self.newest = weights

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        if self.newest is not None:
            self.newest.logprobs(request.prompt_ids)
        async with aclosing(super().generate(request)) as stream:
            async for chunk in stream:
                yield chunk


class Redating(Changing):
    """Gives all tokens of a chunk the version of the last."""

    def changed(self, chunk: Chunk) -> Chunk:
        return replace(chunk, versions=chunk.versions[-1:] * len(chunk.ids))


class Forgetful(TorchBackend):
    """Leaves the head of a model with tied embeddings as it was."""

    async def update_weights(self, weights: Weights) -> None:
        _, engine = self._running()
        model, network = engine._decoder.model, engine._decoder._network
        if model.config.tie_word_embeddings and hasattr(network, "_head"):
            weight, bias = network._head
            network._head = weight.clone(), bias
        if model.config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
            model.lm_head.weight.requires_grad_(False)
            model.load_state_dict, weights = None, WithHead(weights, model.lm_head.weight)
        await super().update_weights(weights)


class WithHead:
    adapter = None

    def __init__(self, weights: Weights, head: torch.Tensor) -> None:
        self.version, self._weights, self._head = weights.version, weights, head

    def tensors(self):
        yield from self._weights.tensors()
        yield "lm_head.weight", self._head.clone()


class Draining(TorchBackend):
    """Lets what is under way end before it takes new weights, all of which then are of the old ones."""

    running = 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        self.running += 1
        try:
            async with aclosing(super().generate(request)) as stream:
                chunks = [chunk async for chunk in stream]
        finally:
            self.running -= 1
        for chunk in chunks:
            yield chunk


class Stubborn(TorchBackend):
    """Samples on when nobody reads any more."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        queue: asyncio.Queue[Chunk | BaseException] = asyncio.Queue()

        async def sample() -> None:
            try:
                async for chunk in super(Stubborn, self).generate(request):
                    queue.put_nowait(chunk)
            except Exception as error:
                queue.put_nowait(error)

        self.tasks = {*getattr(self, "tasks", ()), asyncio.ensure_future(sample())}
        while True:
            chunk = await queue.get()
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk
            if chunk.finish:
                return


class Brittle(TorchBackend):
    """Breaks for good at the first bad request."""

    broken = False

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        if self.broken:
            raise BackendError("the engine is dead")
        try:
            async with aclosing(super().generate(request)) as stream:
                async for chunk in stream:
                    yield chunk
        except BackendError:
            self.broken = True
            raise


class Late(TorchBackend):
    """Notices after a token that a prompt is too long."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        try:
            async with aclosing(super().generate(request)) as stream:
                async for chunk in stream:
                    yield chunk
        except PromptTooLong:
            yield Chunk((1,), (-1.0,), (0,))
            raise


class Vague(TorchBackend):
    """Calls a prompt that is too long a failure of its own."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        try:
            async with aclosing(super().generate(request)) as stream:
                async for chunk in stream:
                    yield chunk
        except PromptTooLong as error:
            raise BackendError("something broke") from error


class Homebound(TorchBackend):
    """Works on the loop only that it was started on."""

    async def start(self) -> Capabilities:
        self.home = asyncio.get_running_loop()
        return await super().start()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        if asyncio.get_running_loop() is not self.home:
            raise RuntimeError("attached to a different loop")
        async with aclosing(super().generate(request)) as stream:
            async for chunk in stream:
                yield chunk


class Narrow(TorchBackend):
    """Refuses whom it has no slot for."""

    running = 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        if self.running >= self._context.max_concurrency:
            raise BackendError("all slots are taken")
        self.running += 1
        try:
            async with aclosing(super().generate(request)) as stream:
                async for chunk in stream:
                    yield chunk
        finally:
            self.running -= 1


class Once(TorchBackend):
    """Stops once."""

    stopped = False

    async def stop(self) -> None:
        if self.stopped:
            raise RuntimeError("stopped already")
        self.stopped = True
        await super().stop()
