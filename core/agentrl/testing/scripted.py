"""A backend that plays given completions, so that a test decides what the policy writes."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import NoReturn, cast

from agentrl.errors import BackendError, PromptTooLong
from agentrl.inference.contract import (
    Capabilities,
    Chunk,
    FinishReason,
    GenerationRequest,
    HeldWeights,
    Sampling,
    Weights,
)
from agentrl.inference.engine.sampler import StopStrings, TextDecoder
from agentrl.testing.parts import tiny_renderer
from agentrl.tokens.renderer import Renderer

__all__ = ["Hangs", "Script", "ScriptedBackend", "ScriptedCompletion", "Truncated", "capabilities"]


@dataclass(frozen=True, slots=True)
class Truncated:
    """A completion that the token limit cuts off after ``text``, which is not empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Hangs:
    """A completion that never comes, until its request is cancelled or the backend stops."""


ScriptedCompletion = str | Sequence[int] | Truncated | Hangs | Exception
"""What the policy writes: a text, which ends its turn; raw token ids, taken as they are; or a failure."""

Script = Sequence[ScriptedCompletion] | Callable[[str], ScriptedCompletion | Awaitable[ScriptedCompletion]]
"""Completions in order, or a function from the prompt's text to one."""


def capabilities(context_length: int, max_concurrency: int) -> Capabilities:
    """Returns the capabilities of a backend that says what its script says, whatever form is asked for."""
    known = Capabilities(context_length, max_concurrency)
    return replace(known, sampling=known.sampling | {"grammar", "logit_bias"})


class ScriptedBackend:
    """A ``Backend`` that answers each request with the next completion of a script.

    ::

        backend = ScriptedBackend(["<tool_call>not JSON</tool_call>", "It is 85."])

    Each session gets the script from its beginning, and its last completion again for every later request.
    Texts become ids as ``renderer`` (by default that of the model ``tiny``) encodes them, special tokens included, and
    end with the end of a turn. As with any engine, the first of the request's stop ids, a stop string or
    ``max_tokens`` ends them earlier. Tokens carry ``version`` and logprobs that are plausible, not those of a model.

    May be used from any thread and loop. Its attributes are ``requests`` (those that were made), ``running`` (how many
    are under way) and ``cancelled`` (how many were given up).
    """

    def __init__(
        self,
        completions: Script,
        renderer: Renderer | None = None,
        *,
        version: int = 0,
        context_length: int = 32768,
        max_concurrency: int = 64,
    ) -> None:
        self.renderer = tiny_renderer() if renderer is None else renderer
        self.version = version
        self._capabilities = capabilities(context_length, max_concurrency)
        self._lock = threading.Lock()
        self._stopped: Future[None] = Future()
        self.play(completions)

    def play(self, completions: Script) -> None:
        """Start over with another script, and forget all requests so far."""
        if not callable(completions) and not completions:
            raise ValueError("a script has at least one completion")
        self._script = [completions] if isinstance(completions, str) else completions
        self._turns: defaultdict[str | None, int] = defaultdict(int)
        self.requests: list[GenerationRequest] = []
        self.running = 0
        self.cancelled = 0

    async def start(self) -> Capabilities:
        """See ``Backend``; may be called again after ``stop``."""
        self._stopped = Future()
        return self._capabilities

    async def stop(self) -> None:
        """End hanging completions with ``BackendError``. Safe to call twice."""
        if not self._stopped.done():
            self._stopped.set_result(None)

    async def update_weights(self, weights: Weights) -> None:
        """Give later tokens the version of ``weights``; the completions stay those of the script."""
        self.version = weights.version

    async def held_weights(self) -> HeldWeights:
        """See ``Backend``: there are none, and it says so."""
        return HeldWeights(self.version, None, "its completions come from a script")

    async def score(self, ids: Sequence[int]) -> Sequence[float]:
        """Returns the log-probabilities that the tokens have in completions."""
        return [_logprob(token) for token in ids[1:]]

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Play the next completion. Raises an exception of the script, and ``PromptTooLong``."""
        room = self._capabilities.context_length - len(request.prompt_ids)
        if room < 1:
            raise PromptTooLong(
                f"the prompt's {len(request.prompt_ids)} tokens leave no room in a context of "
                f"{self._capabilities.context_length}"
            )
        with self._lock:
            self.requests.append(request)
            self.running += 1
        try:
            ids, finish = await self._played(await self._next(request))
            whole = self._chunk(ids, finish, request.sampling, room)
            await asyncio.sleep(0)
            for chunk in _pieces(whole) if request.stream else [whole]:
                yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            with self._lock:
                self.cancelled += 1
            raise
        finally:
            with self._lock:
                self.running -= 1

    async def _next(self, request: GenerationRequest) -> ScriptedCompletion:
        if callable(self._script):
            returned = self._script(self.renderer.vocabulary.decode(request.prompt_ids))
            return await returned if inspect.isawaitable(returned) else returned
        with self._lock:
            turn = self._turns[request.session]
            self._turns[request.session] += 1
        return self._script[min(turn, len(self._script) - 1)]

    async def _played(self, completion: ScriptedCompletion) -> tuple[list[int], FinishReason]:
        vocabulary = self.renderer.vocabulary
        match completion:
            case Exception():
                raise completion
            case Hangs():
                await self._hang()
            case Truncated(text):
                return vocabulary.encode(text), "length"
            case str(text):
                return [*vocabulary.encode(text), self._end_of_turn], "stop"
        return list(completion), "stop"

    async def _hang(self) -> NoReturn:
        await asyncio.shield(asyncio.wrap_future(self._stopped))
        raise BackendError("the backend was stopped")

    @property
    def _end_of_turn(self) -> int:
        ends = self.renderer.stop_ids
        eos = self.renderer.vocabulary.eos_token_id
        return int(eos) if eos in ends else min(ends)

    def _chunk(self, ids: list[int], finish: FinishReason, sampling: Sampling, room: int) -> Chunk:
        """The whole completion, cut where the request ends it."""
        strings = StopStrings(cast(TextDecoder, self.renderer.vocabulary), sampling.stop) if sampling.stop else None
        limit = min(len(ids), sampling.max_tokens or room, room)
        stop = None
        for count in range(1, limit + 1):
            stop = strings.found(ids[:count]) if strings else None
            if ids[count - 1] in sampling.stop_ids or stop is not None:
                limit, finish = count, "stop"
                break
        else:
            finish = "length" if limit < len(ids) else finish
        given = tuple(ids[:limit])
        logprobs = tuple(map(_logprob, given))
        tops = tuple(_alternatives(token, sampling.top_logprobs) for token in given) if sampling.top_logprobs else ()
        return Chunk(given, logprobs, (self.version,) * limit, tops, finish, stop)


def _logprob(token: int) -> float:
    """A log-probability that depends on the token only."""
    return -0.01 * (1 + token % 50)


def _alternatives(token: int, count: int) -> tuple[tuple[int, float], ...]:
    """The token itself as the likeliest, and others."""
    others = (other for other in range(count) if other != token)
    return ((token, _logprob(token)), *((other, -5.0 - rank) for rank, other in enumerate(others)))[:count]


def _pieces(whole: Chunk) -> list[Chunk]:
    """The completion as one chunk per token."""
    last = len(whole.ids) - 1
    return [
        Chunk(
            ids=whole.ids[at : at + 1],
            logprobs=whole.logprobs[at : at + 1],
            versions=whole.versions[at : at + 1],
            top_logprobs=whole.top_logprobs[at : at + 1],
            finish=whole.finish if at == last else None,
            stop_string=whole.stop_string if at == last else None,
        )
        for at in range(last + 1)
    ]
