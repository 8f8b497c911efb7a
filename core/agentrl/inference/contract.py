"""The contracts of inference backends: token ids in; token ids, logprobs and policy versions out.

A ``Backend`` never sees a message, a tool or a template. A ``ChatBackend`` is the other kind, for models that are
evaluated and never trained: messages in, a message out. Either may be called from any thread and any event loop at
once, because the gateway serves agents in the rollout process and over HTTP alike.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

from agentrl.costs.contract import Usage
from agentrl.hosting.contract import Hosts

if TYPE_CHECKING:
    import torch

FinishReason = Literal["stop", "length", "cancelled"]
InFlight = Literal["keep", "recompute"]
"""What becomes of the KV of requests in flight at a change of weights: see ``BackendContext.in_flight``."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a completion's text must look like: at each position only tokens that keep to it are drawn.

    The completion may end only where the text is complete. Equal grammars are compiled once.
    """

    kind: Literal["json_schema", "json_object", "regex", "structural_tag"]
    text: str = ""
    """A JSON schema as JSON, a regular expression that matches the whole text, or a structural tag of xgrammar as JSON
    (``{"type": "structural_tag", "format": …}``); empty for ``json_object``, which is any JSON object."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one completion are sampled."""

    temperature: float = 1.0
    """0 is greedy. Logprobs are those of the distribution after this temperature (after 1 when greedy)."""
    top_p: float = 1.0
    """Nucleus mass; 1 keeps everything."""
    top_k: int = 0
    """How many of the likeliest tokens may be drawn; 0 means all."""
    max_tokens: int | None = None
    """The most tokens to sample; ``None`` means as many as the context leaves room for."""
    seed: int = 0
    """Equal prompts, weights and seeds give equal tokens, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    """Strings that end the completion once its decoded text holds one."""
    stop_ids: frozenset[int] = frozenset()
    """Token ids that end the completion; the id itself is the last sampled token."""
    top_logprobs: int = 0
    """How many of the likeliest tokens to report at each position."""
    grammar: Grammar | None = None
    """What the completion must look like. The distribution is that of the allowed tokens, and so are logprobs; an id
    of ``stop_ids`` is allowed only where the grammar may end."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """What is added to the logits of single ids, before temperature; logprobs are those of the changed distribution."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request for one completion."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    stream: bool = False
    """Whether the caller reads tokens as they are sampled; otherwise they may arrive in one chunk."""
    session: str | None = None
    """The session's id. Requests of one session share prefixes: a backend with replicas sends them to one of them."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens sampled since the last chunk of a completion. The four sequences have one entry per token."""

    ids: tuple[int, ...]
    """Token ids, from 0 to below the vocabulary's size."""
    logprobs: tuple[float, ...]
    """The natural log-probability of each id after temperature, before ``top_p`` and ``top_k`` cut the distribution:
    finite, and at most 0."""
    versions: tuple[int, ...]
    """The policy version that each id was sampled under. A version that the session does not allow is refused."""
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    """For each id the likeliest (id, logprob) pairs, likeliest first; empty when none were asked for."""
    finish: FinishReason | None = None
    """Why the completion ended; set on its last chunk only."""
    stop_string: str | None = None
    """The stop string that ended the completion, if one did. The ids include it; the text is cut before it."""
    first_token: float | None = field(default=None, compare=False)
    """When the first token of the completion was sampled, by ``time.monotonic()`` of this process; set on its first
    chunk only, and ``None`` where the backend does not know."""


_ROUNDING: Final = 1e-3
"""How far rounding to few bits may lift a logprob above 0."""
_LARGEST: Final = 2**31
"""Ids and versions are stored in 32 bits."""
_FEW: Final = 256
"""Fewer numbers than this take Python less time than numpy."""


class FinishedTokens(Protocol):
    """The tokens of a whole completion, with the fields of ``Chunk``."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def logprobs(self) -> Sequence[float]: ...

    @property
    def versions(self) -> Sequence[int]: ...

    @property
    def finish(self) -> str | None: ...


def completion_fault(
    tokens: FinishedTokens, *, vocabulary: int | None = None, versions: tuple[int, int] | None = None
) -> str | None:
    """Returns what is impossible about a whole completion, as a sentence; ``None`` where nothing is.

    Checked are the reason for its end, the lengths and types of its columns, ids against ``vocabulary`` (how many ids
    the model knows), logprobs, and versions against ``versions`` (the oldest and the newest that are allowed).
    Thousands of tokens take a fraction of a millisecond.
    """
    count = len(tokens.ids)
    if tokens.finish not in ("stop", "length"):
        how = f"with finish={tokens.finish!r}, which is neither 'stop' nor 'length'"
        return f"a completion ended after {count} tokens {how}"
    if not count:
        return "a completion came without a token id"
    if len(tokens.logprobs) != count:
        return f"a completion of {count} ids came with {len(tokens.logprobs)} logprobs"
    if len(tokens.versions) != count:
        return f"a completion of {count} ids came with {len(tokens.versions)} policy versions"
    try:  # An array of the standard library takes no number of another kind in silence.
        ids, logprobs, dates = array("q", tokens.ids), array("d", tokens.logprobs), array("q", tokens.versions)
    except (TypeError, OverflowError) as error:
        return f"ids and versions of a completion must be whole numbers, and logprobs numbers: {error}"
    least, most = _range(ids)
    if least < 0 or most >= (vocabulary or _LARGEST):
        return f"a completion holds id {least if least < 0 else most}, and the vocabulary has {vocabulary or _LARGEST}"
    least, most = _range(logprobs)
    if not (math.isfinite(least) and most <= _ROUNDING):
        return f"a token came with the logprob {least if most <= _ROUNDING else most:g}, which no probability has"
    oldest, newest = versions or (0, _LARGEST - 1)
    least, most = _range(dates)
    if least < oldest or most > newest:
        given, wanted = least if least < oldest else most, f"{oldest}" if oldest == newest else f"{oldest} to {newest}"
        return f"tokens came as sampled under version {given} of the weights, and not under {wanted}"
    return None


def _range(values: array[int] | array[float]) -> tuple[float, float]:
    """The least and the greatest of ``values``, both NaN where one of them is."""
    if len(values) < _FEW and not math.isnan(sum(values)):
        return min(values), max(values)
    import numpy as np  # Here, because a base install has none.

    column = np.frombuffer(values, dtype=np.float64 if values.typecode == "d" else np.int64)
    return column.min().item(), column.max().item()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do; ``Backend.start`` returns it."""

    context_length: int
    """The most tokens of prompt and completion together."""
    max_concurrency: int
    """How many completions run at once; further requests wait."""
    trains: bool = True
    """Whether weights can be updated and ids and logprobs are exact."""
    sampling: frozenset[str] = frozenset({"temperature", "top_p", "top_k", "seed", "stop", "top_logprobs"})
    """The fields of ``Sampling`` that are honoured; every backend honours ``max_tokens`` and ``stop_ids`` as well.
    Beside the default's, a backend may name ``grammar`` and ``logit_bias``."""
    masked_logprobs: bool = True
    """Whether the logprobs of a completion under a grammar are those of the tokens that ``agentrl.inference.grammars``
    allows. Where an engine reports those of all tokens, or reads grammars in another way, it says so here: tokens that
    were chosen under a grammar are never trained then."""
    temperatures: tuple[float, float] = (0.0, inf)
    """The lowest temperature above 0 and the highest that are honoured, where ``sampling`` names the field. Greedy
    sampling is always honoured."""
    reproducible: bool = False
    """Whether ids and logprobs of a request have the same bits whatever else the backend does beside it."""
    keeps_adapters: bool = False
    """Whether a request that is in flight when an update brings another adapter goes on under the one that it began
    with, whose version all its tokens carry. Else it goes on under the new one, as at every update."""
    notes: tuple[str, ...] = ()
    """What whoever starts the backend should be told, such as why it is slower than it could be: sentences without a
    full stop."""

    def honours_temperature(self, temperature: float) -> bool:
        """Returns whether completions may be sampled at ``temperature``."""
        if temperature == 0:
            return True
        least, most = self.temperatures if "temperature" in self.sampling else (1.0, 1.0)
        return least <= temperature <= most


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine has to do at a moment, all its replicas together."""

    running: int
    """Completions that it samples."""
    waiting: int
    """Requests that wait until it has room for them."""


@runtime_checkable
class LoadReporting(Protocol):
    """A backend that also says how busy it is.

    Any backend may. While requests wait in it, a rollout starts no further episodes; of others only their
    ``Capabilities.max_concurrency`` is known.
    """

    def load(self) -> EngineLoad | None:
        """Returns what is known now, without waiting; ``None`` where nothing is. May be called from any thread."""
        ...


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """What a tensor is, by its bits. Two are equal exactly where type, shape and digest are."""

    dtype: str
    """The type that it is held in, by torch's name without the prefix: ``bfloat16``."""
    shape: tuple[int, ...]
    digest: str
    """``agentrl.tensor_digest`` of the tensor: of its bits in that type, the same on every device."""


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """The weights that an engine serves with, as it finds them in its own memory."""

    version: int
    """The policy version that its next token will carry."""
    tensors: Mapping[str, TensorDigest] | None
    """Every parameter by its Hugging Face name, in the shape and order of numbers that the Hugging Face model has it
    in: projections that the engine has joined are split again, rows that it has added are left out. A tensor that is
    tied to another comes once, under either name, where the engine holds it once, and under both names where it
    holds two. ``None`` where the engine cannot tell, for the reason in ``inability``."""
    inability: str = ""
    """Why there are no digests, as a part of a sentence such as "its weights are kept in 4 bits"."""
    apart: bool = False
    """Whether the engine holds an adapter beside the weights of its base: ``tensors`` has both then, each by the name
    and as the number that ``Adapter.digests`` has it under."""


class Adapter(Protocol):
    """The adapter of low rank that a learner trains over a frozen model; lent as ``Weights`` are.

    Each adapted matrix ``W``, of shape (outputs, inputs), stands for ``W + scale · B @ A``.
    """

    @property
    def rank(self) -> int: ...

    @property
    def scale(self) -> float: ...

    @property
    def targets(self) -> Sequence[str]:
        """The last parts of the names of the adapted layers, such as ``q_proj``."""
        ...

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields name and tensor of every ``A`` and ``B``: the adapted layer's name, and ``.lora_A.weight`` of shape
        (rank, inputs) or ``.lora_B.weight`` of shape (outputs, rank)."""
        ...

    def merged(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields those of ``Weights.tensors`` that the adapter changes; all others stay what they are for ever."""
        ...

    def merged_logprobs(self, ids: Sequence[int], dtypes: Mapping[str, str]) -> Sequence[float]:
        """As ``Weights.logprobs``, but computed with ``merged``, each tensor as it is after ``tensor.to(dtype)``.

        ``dtypes`` is as of ``Weights.digests``; a tensor that it does not name is not rounded. An engine that merges an
        adapter and keeps the sum in 16 bits is compared with these.
        """
        ...

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        """As ``Weights.digests``, of base and adapter apart.

        Parameters of the model go by their Hugging Face names and are those of the base; those of the adapter go by
        the names of ``tensors``, and ``B`` is as it is after ``tensor.to(dtype) * scale``.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the adapter in peft's format into ``folder``, made where it is missing. Raises as ``Weights.save``."""
        ...


class Weights(Protocol):
    """The learner's weights of one policy version, under the names of the Hugging Face model.

    They are lent: whoever gets them reads them until they are given back, which for a backend is when its
    ``update_weights`` returns. After that every method raises ``RuntimeError``; ``version`` may be read at any time.
    """

    @property
    def version(self) -> int: ...

    @property
    def adapter(self) -> Adapter | None:
        """The adapter, where one is trained over a frozen model; everything else here is of the two merged then, for
        backends that know nothing of adapters."""
        ...

    def names(self) -> Sequence[str]:
        """Returns the names of ``tensors``."""
        ...

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the name and tensor of every parameter: the learner's own memory, to be copied and never changed."""
        ...

    def save(self, folder: Path) -> None:
        """Write the weights, config and tokenizer as a Hugging Face model into ``folder``, made where it is missing.

        Raises ``RunError`` where a file cannot be written. Files written by then stay, so the folder may be handed on
        only after ``save`` has returned.
        """
        ...

    def logprobs(self, ids: Sequence[int]) -> Sequence[float]:
        """Returns the learner's natural log-probabilities of ``ids[1:]`` at temperature 1, each given all before it.

        An engine that has taken the weights is compared with these.
        """
        ...

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        """Returns the digests of the parameters that ``dtypes`` names, each as it is after ``tensor.to(dtype)``.

        ``dtypes`` has torch's names without the prefix. A parameter that is tied to others may go by any of its names;
        a name that the model does not have is left out.
        """
        ...

    def send(self, target: str, /, **arguments: Any) -> Any:
        """Call the function ``package.module:function`` with these weights and ``arguments`` where the weights are.

        A learner in other processes has it called in the first of them, so that no tensor passes through this one; only
        ``arguments``, what it returns and what it raises do. Meanwhile ``tensors`` yields whole tensors, one at a time,
        which the processes put together. Raises what the function raises.
        """
        ...


@dataclass(frozen=True, slots=True)
class AdapterContext:
    """What a backend is told of adapters before it starts, whose class has ``takes_adapters = True``."""

    rank: int
    """The rank of the adapter that it starts with, and of those that updates bring."""
    targets: tuple[str, ...] = ()
    """The last parts of the names of the layers that they adapt; empty where only the adapter itself tells."""
    folder: Path | None = None
    """The adapter of policy version ``BackendContext.version``, in peft's format; ``None`` where that version is the
    model itself."""


@dataclass(frozen=True, slots=True)
class BackendContext:
    """The arguments that a backend is built from."""

    model_folder: Path
    """A Hugging Face folder: config, tokenizer and the weights of policy version ``version``, or, with
    ``adapter.folder``, of the base model. It need not be there before ``start``."""
    version: int = 0
    seed: int = 0
    max_concurrency: int = 64
    """How many completions the run wants to sample at once."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``training.precision``: what the learner computes in, which an engine without a type of its own follows."""
    options: dict[str, object] = field(default_factory=dict)
    """The keys of ``inference.backend`` beside its name, validated by the backend's ``Settings``."""
    logs: Path | None = None
    """The folder for the output of the backend's processes; ``None`` where it is not kept."""
    say: Callable[[str], None] = lambda text: None
    """Call it, from any thread, to say what a long start waits for, or which fault the backend handles by itself."""
    timeout: float | None = None
    """Seconds after which a start or an update of weights that has not ended is cancelled; ``None`` for never."""
    in_flight: InFlight = "keep"
    """What a change of weights does with requests in flight: with ``keep`` they go on with the KV that they have, with
    ``recompute`` the KV of their prompt and tokens is computed anew under the new weights before their next token. A
    backend that cannot do what is asked for raises ``ConfigError`` when it is built."""
    adapter: AdapterContext | None = None
    """Where an adapter is sampled, or trained, and the backend's class has the attribute ``takes_adapters``, true. Any
    other backend is given whole models, with the adapter merged."""
    lend: Callable[[str], AbstractAsyncContextManager[Weights]] | None = None
    """In training, lends the weights that the backend was given last, or was started with, to whom the text names: for
    a server that starts later and finds them in no folder. It waits while they change. ``None`` where nothing is
    trained."""
    memory: int | None = None
    """Bytes of the learner's device that a ``Sleeper`` may take while it is awake, weights and caches included, by the
    memory plan of the run; ``None`` where that is not known, or has been left to the backend."""
    hosts: Hosts | None = None
    """Starts processes where the scheduler places them, which may be on other machines; ``None`` leaves it to the
    backend to start its own, here."""


class Backend(Protocol):
    """An inference engine. A plugin registers a callable ``(BackendContext) -> Backend``.

    One that takes adapters is a class with the attribute ``takes_adapters = True``; its context says what it is to
    expect, and it may use ``Weights.adapter``.
    """

    async def start(self) -> Capabilities:
        """Load the model and get ready. Raises ``BackendError``, or ``PluginError`` for a broken environment."""
        ...

    async def stop(self) -> None:
        """End all requests in flight and free everything. Safe to call twice."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Sample one completion.

        Yields its tokens in chunks, the last with ``finish``. Closing the generator, or cancelling the task that
        reads it, cancels the request and frees its slot. Raises ``PromptTooLong`` or ``UnsupportedSampling`` before
        the first token, and ``BackendError`` where the engine fails. One request's error never harms another.
        """
        ...

    async def update_weights(self, weights: Weights) -> int | None:
        """Put new weights in place. Returns how many bytes of them have come, or ``None`` where that is not known.

        Tokens sampled after it returns carry ``weights.version``. Requests in flight pause between two tokens, keep
        what they have, and go on under the new weights, with their KV or without it as ``BackendContext.in_flight``
        says; a token's version is that of the weights that produced its logits. No prefix that was computed under
        old weights, even in part, is used for another request. At an update that brings an adapter, a backend with
        ``Capabilities.keeps_adapters`` lets requests in flight go on under the old one to their end. The weights are
        borrowed: they may be read until this method returns, and not later. Raises ``BackendError`` where they cannot
        be taken.
        """
        ...

    async def held_weights(self) -> HeldWeights:
        """Returns what weights the engine holds, from the memory that it computes with.

        A run asks after every update, and stops where a digest is not the learner's. So nothing may be remembered
        from the update: each call reads the tensors anew. An engine of several replicas answers for all of them:
        where one differs from the others, it returns what that one holds. Raises ``BackendError`` where the engine
        does not answer.
        """
        ...

    async def score(self, ids: Sequence[int]) -> Sequence[float]:
        """Returns the engine's natural log-probabilities of ``ids[1:]`` at temperature 1, each given all before it.

        They are computed under the weights that the engine has now, by the kernels that requests are computed with,
        and without KV that was kept from before. Raises ``PromptTooLong`` where ``ids`` are longer than its context,
        and ``BackendError`` where the engine fails.
        """
        ...


@runtime_checkable
class Sleeper(Protocol):
    """A ``Backend`` that shares a device with the learner, and gives its memory up while that computes.

    It starts awake. The run has it sleep before each of the learner's steps, and wake and take the new weights after
    it; what only the learner's step needs is in the CPU's memory meanwhile. So nothing may be sampled during a step,
    and ``rollout.max_staleness`` has to be 0.
    """

    @property
    def sleeps(self) -> bool:
        """Whether this one is to sleep. It is asked before the start, and only once."""
        ...

    async def sleep(self) -> None:
        """Give up the memory of the device, weights included; no request is under way. What comes waits for ``wake``.

        Raises ``BackendError`` where that fails. Safe to call twice.
        """
        ...

    async def wake(self) -> None:
        """Take the memory up again. What the weights are is undefined until ``update_weights``, which comes next.

        Raises ``BackendError`` where that fails. Safe to call twice.
        """
        ...


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One call of an agent to a model behind a chat completions API."""

    body: Mapping[str, Any]
    """The agent's request with ``rollout.override`` applied: messages, tools and any other field, as plain JSON. Its
    ``model`` is the agent's own name for the policy."""
    temperature: float = 1.0
    """Used where the body sets none."""
    max_tokens: int | None = None
    """Used where the body sets none; ``None`` leaves it to the endpoint."""


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """The answer of a chat completions API."""

    answer: Mapping[str, Any]
    """The whole body, plain JSON, in the shape of the chat completions API, with one choice."""
    message: Mapping[str, Any]
    """The choice's message."""
    finish_reason: str
    prompt_tokens: int = 0
    """As the endpoint counts them; 0 where it does not report them."""
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ChatCapabilities:
    """What a chat backend's model can do; ``ChatBackend.start`` returns it."""

    greedy: bool = True
    """Whether the model takes temperature 0."""


@dataclass(frozen=True, slots=True)
class ChatContext:
    """The arguments that a chat backend is built from."""

    model: str
    """The model's name at the endpoint."""
    timeout: float = 600.0
    """Seconds within which a call must be answered, retries included."""
    max_concurrency: int = 64
    """How many episodes run at once."""
    warn: Callable[[str], None] = lambda text: None
    """Call it, from any thread, to report a refusal in spite of which the evaluation goes on."""
    options: dict[str, object] = field(default_factory=dict)
    """The keys of ``inference.backend`` beside its name, validated by the backend's ``Settings``."""
    spend: Callable[[Usage], None] = lambda usage: None
    """Call it, from any thread, with what each request has used, failed ones and retries included: that is what the
    evaluation costs."""


@runtime_checkable
class ChatBackend(Protocol):
    """A model that is reached by messages only: it can be evaluated, and never trained.

    A plugin registers the class, whose constructor takes a ``ChatContext``. Before anything is built, a run looks at
    the class for the contract that it keeps. If its settings have a key ``model``, the value becomes the context's
    ``model``.
    """

    async def start(self) -> ChatCapabilities:
        """Get ready.

        Raises ``ConfigError`` where the endpoint refuses the key or the model, and ``BackendError`` where it does not
        answer.
        """
        ...

    async def stop(self) -> None:
        """End all requests in flight and free everything. Safe to call twice."""
        ...

    async def complete(self, request: ChatRequest) -> ChatCompletion:
        """Returns the endpoint's answer to one call. Cancelling the task that awaits it gives the call up.

        Raises ``GatewayError``, with the endpoint's own status, code and message, for a call that it refuses, and
        ``BackendError`` for one that may succeed later, after all retries and the deadline.
        """
        ...
