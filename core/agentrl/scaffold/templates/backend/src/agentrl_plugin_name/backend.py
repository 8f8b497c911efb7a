"""The backend ``plugin-name``: transformers, one token of one request at a time.

It is whole and exact, and slow: a start to put an engine of yours into. What each
method owes to a run is written in ``agentrl.inference.contract``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from agentrl import (
    AgentRLError,
    BackendError,
    PromptTooLong,
    UnsupportedSampling,
    tensor_digest,
)
from agentrl.inference import contract
from pydantic import BaseModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

T = TypeVar("T")

PLAIN = contract.Sampling()
NOT_HERE = ("top_p", "top_k", "stop", "top_logprobs", "grammar", "logit_bias")


@dataclass
class Generation:
    """A completion so far. Only the backend's thread touches it."""

    sampling: contract.Sampling
    tokens: list[int]
    """Prompt and completion."""
    length: int
    """How many tokens there may be."""
    generator: torch.Generator
    """Its own: what it draws does not depend on what else is being sampled."""
    cache: Any = None
    """Keys and values of all tokens but the last."""
    version: int = -1
    """Of the weights that the cache was computed with."""


class PluginNameBackend:
    """Samples in a thread of its own, in which requests and new weights take turns."""

    class Settings(BaseModel):
        """The keys beside ``inference.backend.name``."""

        device: str = "cpu"
        """Where torch runs the model."""

    def __init__(self, context: contract.BackendContext, settings: Settings) -> None:
        self._folder = context.model_folder
        self._version = context.version
        self._device = settings.device
        self._recomputes = context.in_flight == "recompute"
        self._model: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plugin-name")

    async def start(self) -> contract.Capabilities:
        return await self._in_thread(self._load)

    async def stop(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)
        self._model = None

    async def generate(
        self, request: contract.GenerationRequest
    ) -> AsyncGenerator[contract.Chunk, None]:
        completion = await self._in_thread(self._begin, request)
        chunk = None
        while chunk is None or chunk.finish is None:
            # Whoever cancels a request does not come here for its next token.
            chunk = await self._in_thread(self._next, completion)
            yield chunk

    async def update_weights(self, weights: contract.Weights) -> None:
        await self._in_thread(self._replace, weights)

    async def held_weights(self) -> contract.HeldWeights:
        return await self._in_thread(self._held)

    async def score(self, ids: Sequence[int]) -> Sequence[float]:
        return await self._in_thread(self._score, list(ids))

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            future = self._thread.submit(function, *arguments)
            return await asyncio.wrap_future(future)
        except AgentRLError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise BackendError(f"the engine failed: {reason}") from error

    def _load(self) -> contract.Capabilities:
        # The run draws a display of its own.
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model: Any = AutoModelForCausalLM.from_pretrained(
            self._folder, dtype=torch.float32, local_files_only=True
        )
        self._model = model.to(self._device).eval()
        self._context: int = model.config.max_position_embeddings
        return contract.Capabilities(
            context_length=self._context,
            max_concurrency=1,
            sampling=frozenset({"temperature", "seed"}),
        )

    def _begin(self, request: contract.GenerationRequest) -> Generation:
        """Refuses what this backend cannot do, before the first token."""
        prompt, sampling = list(request.prompt_ids), request.sampling
        known = self._model.get_input_embeddings().num_embeddings
        for name in NOT_HERE:
            if getattr(sampling, name) != getattr(PLAIN, name):
                raise UnsupportedSampling(f"this backend has no {name}")
        if not sampling.temperature >= 0:
            raise UnsupportedSampling("a temperature is a number from 0 up")
        if not prompt or not all(0 <= token < known for token in prompt):
            raise BackendError(f"the model's token ids are 0 to {known - 1}")
        room = self._context - len(prompt)
        if room < 1:
            context = f"a context of {self._context}"
            raise PromptTooLong(f"{len(prompt)} tokens leave no room in {context}")
        length = len(prompt) + min(sampling.max_tokens or room, room)
        generator = torch.Generator(self._device).manual_seed(sampling.seed % 2**63)
        return Generation(sampling, prompt, length, generator)

    @torch.inference_mode()
    def _next(self, completion: Generation) -> contract.Chunk:
        """Sample one token."""
        sampling, tokens = completion.sampling, completion.tokens
        logits = self._logits(completion).float()
        logprobs = (logits / (sampling.temperature or 1.0)).log_softmax(-1)
        if logprobs.isnan().any():
            raise BackendError("the logits are no numbers: the weights have diverged")
        if sampling.temperature == 0:
            token = int(logprobs.argmax())
        else:
            mass = logprobs.exp()
            token = int(torch.multinomial(mass, 1, generator=completion.generator))
        tokens.append(token)
        finish: contract.FinishReason | None = None
        if token in sampling.stop_ids:
            finish = "stop"
        elif len(tokens) == completion.length:
            finish = "length"
        logprob = float(logprobs[token])
        return contract.Chunk((token,), (logprob,), (self._version,), finish=finish)

    def _logits(self, completion: Generation) -> torch.Tensor:
        """Logits of the next token; the run says whether older keys go on."""
        if self._recomputes and completion.version != self._version:
            completion.cache, completion.version = None, self._version
        new = completion.tokens if completion.cache is None else completion.tokens[-1:]
        output = self._model(
            torch.tensor([new], device=self._device),
            past_key_values=completion.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        completion.cache = output.past_key_values
        logits: torch.Tensor = output.logits[0, -1]
        return logits

    @torch.no_grad()
    def _replace(self, weights: contract.Weights) -> None:
        """All weights, or none."""
        old, new = dict(self._model.named_parameters()), dict(weights.tensors())
        shapes = {name: tensor.shape for name, tensor in new.items()}
        if shapes != {name: tensor.shape for name, tensor in old.items()}:
            raise BackendError("the new weights are those of another model")
        for name, parameter in old.items():
            parameter.copy_(new[name])
        self._version = weights.version

    def _held(self) -> contract.HeldWeights:
        """What the model holds now, read anew at every call."""
        tensors = {}
        for name, parameter in self._model.named_parameters():
            dtype = str(parameter.dtype).removeprefix("torch.")
            shape = tuple(parameter.shape)
            tensors[name] = contract.TensorDigest(
                dtype, shape, tensor_digest(parameter)
            )
        return contract.HeldWeights(self._version, tensors)

    @torch.inference_mode()
    def _score(self, ids: list[int]) -> list[float]:
        if len(ids) > self._context:
            raise PromptTooLong(f"{len(ids)} tokens are more than a context")
        logits = self._model(torch.tensor([ids], device=self._device)).logits[0, :-1]
        chosen = torch.tensor(ids[1:], device=self._device)[:, None]
        logprobs = logits.float().log_softmax(-1).gather(1, chosen)[:, 0]
        return [float(each) for each in logprobs]
