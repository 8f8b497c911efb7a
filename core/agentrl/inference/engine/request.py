"""One completion inside the engine: checked on arrival, then filled token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from agentrl.errors import BackendError, PromptTooLong, UnsupportedSampling
from agentrl.inference.contract import Chunk, FinishReason, GenerationRequest, Sampling
from agentrl.inference.engine.delivery import Ticket
from agentrl.inference.engine.prefixes import Ids
from agentrl.inference.engine.stops import Decodes, StopStrings

__all__ = ["Completion", "Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine can take, as its requests are held against."""

    vocabulary: int
    context_length: int
    tokenizer: Decodes | None
    """``None`` where the model's folder has none: then there are no stop strings."""

    def prompt(self, request: GenerationRequest) -> Ids:
        """The prompt as an array; raises ``BackendError``, and ``PromptTooLong`` where it leaves no room."""
        ids = np.asarray(request.prompt_ids)
        if ids.ndim != 1 or not len(ids):
            raise BackendError("the prompt has no token ids", fix="send at least one")
        if ids.dtype.kind not in "iu":
            raise BackendError(f"the prompt's token ids are {ids.dtype}, not integers", fix="send integers")
        outside = ids[(ids < 0) | (ids >= self.vocabulary)]
        if len(outside):
            raise BackendError(
                f"prompt holds token id {outside[0]}, the model's vocabulary has {self.vocabulary}",
                fix="encode the prompt with the tokenizer in the model's folder",
            )
        if len(ids) + 1 > self.context_length:
            raise PromptTooLong(
                f"the prompt's {len(ids)} tokens leave no room in a context of {self.context_length}",
                fix="shorten the prompt, or raise inference.backend.context_length where the model allows it",
            )
        return ids.astype(np.int64)

    def sampling(self, sampling: Sampling) -> None:
        """Raise ``UnsupportedSampling`` for a value that has no meaning."""
        for name, valid in {
            "temperature": math.isfinite(sampling.temperature) and sampling.temperature >= 0,
            "top_p": 0 < sampling.top_p <= 1,
            "top_k": sampling.top_k >= 0,
            "max_tokens": sampling.max_tokens is None or sampling.max_tokens >= 1,
            "top_logprobs": 0 <= sampling.top_logprobs <= self.vocabulary,
            "stop": all(sampling.stop),
        }.items():
            if not valid:
                raise UnsupportedSampling(f"{name}={getattr(sampling, name)!r} is no way to sample", fix=_RANGES[name])
        if sampling.stop and self.tokenizer is None:
            raise UnsupportedSampling(
                "stop strings need the model's tokenizer, and its folder has none", fix="use stop_ids, or add it"
            )


_RANGES = {
    "temperature": "use 0 for greedy, or a positive number",
    "top_p": "use a number above 0 and at most 1",
    "top_k": "use 0 for all, or a positive integer",
    "max_tokens": "use at least 1",
    "top_logprobs": "use 0 to the size of the vocabulary",
    "stop": "leave empty strings out",
}


@dataclass(slots=True, eq=False)
class Completion:
    """A request on its way through the engine. Only the engine's thread touches it."""

    ticket: Ticket
    sampling: Sampling
    prompt: Ids
    stream: bool
    limit: int
    """Most tokens to sample."""
    stops: StopStrings | None
    generation: int = -1
    """Which weights its KV was begun under, counted by the engine; only KV of one generation is shared."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    tops: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    sent: int = 0
    stop_string: str | None = None

    @classmethod
    def of(cls, request: GenerationRequest, limits: Limits, ticket: Ticket) -> Completion:
        """Check a request; raises ``PromptTooLong``, ``UnsupportedSampling`` or ``BackendError``."""
        sampling = request.sampling
        limits.sampling(sampling)
        prompt = limits.prompt(request)
        room = limits.context_length - len(prompt)
        stops = StopStrings(limits.tokenizer, sampling.stop) if sampling.stop and limits.tokenizer else None
        sampling = replace(sampling, stop_ids=frozenset(sampling.stop_ids))
        return cls(ticket, sampling, prompt, request.stream, min(sampling.max_tokens or room, room), stops)

    @property
    def length(self) -> int:
        """Tokens of prompt and completion so far."""
        return len(self.prompt) + len(self.ids)

    @property
    def tokens(self) -> Ids:
        """Prompt and what has been sampled."""
        return np.concatenate([self.prompt, np.array(self.ids, np.int64)])

    def add(self, token: int, logprob: float, version: int) -> FinishReason | None:
        """Take a sampled token; why the completion ends with it, if it does."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.versions.append(version)
        if token in self.sampling.stop_ids:
            return "stop"
        if self.stops is not None:
            self.stop_string = self.stops.found(self.ids)
            if self.stop_string is not None:
                return "stop"
        return "length" if len(self.ids) >= self.limit else None

    def chunk(self, finish: FinishReason | None) -> Chunk:
        """What has been sampled since the last chunk."""
        new = slice(self.sent, None)
        self.sent = len(self.ids)
        return Chunk(
            ids=tuple(self.ids[new]),
            logprobs=tuple(self.logprobs[new]),
            versions=tuple(self.versions[new]),
            top_logprobs=tuple(self.tops[new]),
            finish=finish,
            stop_string=self.stop_string,
        )
