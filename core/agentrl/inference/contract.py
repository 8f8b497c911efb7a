"""What an inference backend is: token ids in; token ids, logprobs and policy versions out.

A backend never sees a message, a tool or a template. A *chat backend* is the other kind, for models that are
evaluated and never trained: messages in, a message out. Either may be called from any thread and any event
loop at once: the gateway serves agents in the rollout process and over HTTP alike.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one completion is sampled."""

    temperature: float = 1.0
    """0 is greedy. Logprobs are of the distribution after this temperature (of 1 when greedy)."""
    top_p: float = 1.0
    """Nucleus mass; 1 keeps everything."""
    top_k: int = 0
    """How many of the likeliest tokens may be drawn; 0 is all."""
    max_tokens: int | None = None
    """Most tokens to sample; ``None`` is what the context leaves."""
    seed: int = 0
    """Equal prompts, weights and seeds give equal tokens, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    """Strings that end the completion once its decoded text holds one."""
    stop_ids: frozenset[int] = frozenset()
    """Token ids that end the completion; the id itself is the last sampled token."""
    top_logprobs: int = 0
    """How many alternatives to report at each position."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion to sample."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    stream: bool = False
    """Whether the caller reads tokens as they come; otherwise they may arrive in one chunk."""
    session: str | None = None
    """Requests of one session share prefixes: a backend with replicas keeps them together."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens sampled since the last chunk; the four sequences have one entry a token."""

    ids: tuple[int, ...]
    """From 0 to below the vocabulary's size."""
    logprobs: tuple[float, ...]
    """Natural log-probability of each id under the distribution that it was drawn from, before
    ``top_p`` and ``top_k`` cut it: finite, and at most 0."""
    versions: tuple[int, ...]
    """Policy version that each id was sampled under. One that ``rollout.max_staleness`` does not allow is refused."""
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    """For each id the likeliest (id, logprob) pairs; empty when none were asked for."""
    finish: FinishReason | None = None
    """Set on the last chunk of a completion only."""
    stop_string: str | None = None
    """The stop string that ended the completion, if one did. The ids hold it; text is cut before it."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do, known once it has started."""

    context_length: int
    """Prompt and completion together, in tokens."""
    max_concurrency: int
    """How many completions run at once; more wait their turn."""
    trains: bool = True
    """Whether weights can be updated and ids and logprobs are exact."""
    sampling: frozenset[str] = frozenset({"temperature", "top_p", "top_k", "seed", "stop", "top_logprobs"})
    """Fields of ``Sampling`` that are honoured beyond ``max_tokens`` and ``stop_ids``."""
    temperatures: tuple[float, float] = (0.0, inf)
    """The least temperature above 0 that is honoured, and the most, where ``sampling`` names it; greedy always is."""

    def honours_temperature(self, temperature: float) -> bool:
        """Whether completions may be sampled at ``temperature``."""
        if temperature == 0:
            return True
        least, most = self.temperatures if "temperature" in self.sampling else (1.0, 1.0)
        return least <= temperature <= most


class Weights(Protocol):
    """The learner's weights of one policy version, as Hugging Face names them."""

    @property
    def version(self) -> int: ...

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of every parameter; valid until the learner steps again."""
        ...

    def save(self, folder: Path) -> None:
        """Write them as a Hugging Face model folder."""
        ...

    def logprobs(self, ids: Sequence[int]) -> Sequence[float]:
        """The learner's natural log-probabilities of ``ids[1:]`` at temperature 1, each given all before it.

        What an engine that took the weights is held against; valid until the learner steps again.
        """
        ...


@dataclass(frozen=True, slots=True)
class BackendContext:
    """What a backend is built from."""

    model_folder: Path
    """A Hugging Face folder: config, tokenizer and the weights of version ``version``."""
    version: int = 0
    seed: int = 0
    max_concurrency: int = 64
    """Completions the run wants at once."""
    options: dict[str, object] = field(default_factory=dict)
    """Keys of ``inference.backend`` beside its name, validated by the backend's ``Settings``."""
    logs: Path | None = None
    """The folder for what its processes print, if it has any; ``None`` where nobody keeps it."""
    say: Callable[[str], None] = lambda text: None
    """Told, from any thread, what a long start waits for and which faults the backend deals with by itself."""
    timeout: float | None = None
    """Seconds after which a start that has not ended, or an update of weights, is cancelled; ``None`` for never."""


class Backend(Protocol):
    """An inference engine. A plugin registers a callable ``(BackendContext) -> Backend``."""

    async def start(self) -> Capabilities:
        """Load and get ready. Raises ``BackendError``, or ``PluginError`` for a broken environment."""
        ...

    async def stop(self) -> None:
        """Cancel what is in flight and free everything. Safe to call twice."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Sample one completion.

        Closing the generator, or cancelling the task that reads it, cancels the request and frees
        its slot. Raises ``PromptTooLong`` or ``UnsupportedSampling`` before the first token and
        ``BackendError`` when the engine fails; one request's error never harms another.
        """
        ...

    async def update_weights(self, weights: Weights) -> None:
        """Put new weights in place.

        Tokens sampled after it returns carry ``weights.version``; requests in flight keep their
        tokens and go on under the new weights; no prefix computed under old ones is used again.
        """
        ...


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One call of an agent, for a model behind a chat completions API."""

    body: Mapping[str, Any]
    """The request as the agent wrote it, under ``rollout.override``: messages, tools, any other field; plain JSON.
    Its ``model`` is whatever the agent calls the policy."""
    temperature: float = 1.0
    """Used where the body sets none."""
    max_tokens: int | None = None
    """Used where the body sets none; ``None`` leaves it to the endpoint."""


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """What the endpoint answered."""

    answer: Mapping[str, Any]
    """The whole body, plain JSON, in the shape of the chat completions API, with one choice."""
    message: Mapping[str, Any]
    """The choice's message."""
    finish_reason: str
    prompt_tokens: int = 0
    """As the endpoint counts them; 0 where it does not say."""
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ChatCapabilities:
    """What a chat backend's model can do, known once it has started."""

    greedy: bool = True
    """Whether it takes temperature 0."""


@dataclass(frozen=True, slots=True)
class ChatContext:
    """What a chat backend is built from."""

    model: str
    """The model's name at the endpoint."""
    timeout: float = 600.0
    """Seconds that the endpoint may take to answer a call, retries included."""
    max_concurrency: int = 64
    """Episodes that run at once."""
    warn: Callable[[str], None] = lambda text: None
    """Told, from any thread, of what the endpoint minds and the evaluation goes on without."""
    options: dict[str, object] = field(default_factory=dict)
    """Keys of ``inference.backend`` beside its name, validated by the backend's ``Settings``."""


@runtime_checkable
class ChatBackend(Protocol):
    """A model that is reached by messages only: it can be evaluated, and never trained.

    A plugin registers the class, whose constructor takes a ``ChatContext``: a run asks the class, before anything is
    built, which of the two contracts it keeps. The key ``model`` beside its name, where it takes one, is the context's
    ``model`` by the time that it is built.
    """

    async def start(self) -> ChatCapabilities:
        """Get ready. Raises ``ConfigError`` where the endpoint refuses the key or the model, else ``BackendError``."""
        ...

    async def stop(self) -> None:
        """Cancel what is in flight and free everything. Safe to call twice."""
        ...

    async def complete(self, request: ChatRequest) -> ChatCompletion:
        """Have one completion made. Cancelling the task that awaits it gives the call up.

        Raises ``GatewayError``, with the endpoint's own status, code and message, for what it refuses, and
        ``BackendError`` for what may go better another time, retries and the deadline being spent.
        """
        ...
