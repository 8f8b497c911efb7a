"""The engine: the generations in flight, and the steps that advance them.

Each step admits waiting generations, computes prompts, decodes one token in every row and delivers what was sampled.
A prompt's KV is computed for all its tokens but the last, which then goes through decoding like every sampled token.
So sampling happens in one place, and a prompt whose KV is known costs no forward of its own.

KV is shared only within an *epoch*, the time between two changes of weights: what is computed, even partly, under
older weights serves the generations that began with it and nobody else, and not even those where they are to begin it
anew.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from agentrl.errors import BackendError, one_line, shortened
from agentrl.inference.contract import Chunk, FinishReason, HeldWeights, Sampling, TensorDigest, Weights
from agentrl.inference.digests import tensor_digest
from agentrl.inference.engine.cache import (
    FEWEST_ROWS,
    Ids,
    KVBlock,
    PrefillBatch,
    PrefixCache,
    Prompt,
    Segment,
    prefill_groups,
    round_up,
)
from agentrl.inference.engine.model import Decoder
from agentrl.inference.engine.sampler import DecodeBatch, DrawnTokens, StopStrings, TextDecoder, sample
from agentrl.inference.grammars import Grammars, GrammarState

__all__ = ["ChunkQueue", "Counters", "Engine", "EngineLimits", "Generation", "Outbox", "model_failed"]

Item = Chunk | BaseException

_SCORED_ROWS = 8
"""Rows of a step that scores given tokens, in multiples of the fewest."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine can take; requests are held against it before they are queued."""

    vocabulary: int
    context_length: int
    """Prompt and sampled tokens together."""
    tokenizer: TextDecoder | None
    """``None`` where the model's folder has none; stop strings and grammars are refused then."""
    grammars: Grammars | None = None
    """``None`` where there is no tokenizer or no xgrammar; grammars are refused then."""
    reproducible: bool = False
    """Whether a request's numbers have the same bits whatever else is computed beside it."""
    notes: tuple[str, ...] = ()
    """See ``Capabilities``."""


@dataclass(slots=True)
class Counters:
    """Totals since the engine started, and what it holds now."""

    tokens: int = 0
    """Sampled tokens."""
    prompt_tokens: int = 0
    """Tokens of admitted prompts, without the last of each, which decodes."""
    prefix_hit_tokens: int = 0
    """How many of the prompt tokens were not computed again."""
    steps: int = 0
    busy_seconds: float = 0.0
    """Wall time inside steps."""
    running: int = 0
    """Generations that have a row, or wait for their prompt's KV, now."""
    waiting: int = 0
    """Generations that wait for room, now."""


class ChunkQueue:
    """The chunks of one generation for its reader: made in the reader's event loop, and read there only."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        """Hand over a chunk, or the error that ends the generation. Called in the reader's loop."""
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Chunk:
        """Returns the next chunk, or raises the error that ends the generation."""
        while not self._items:
            self._waiter = self.loop.create_future()
            await self._waiter
        item = self._items.popleft()
        if isinstance(item, BaseException):
            raise item
        return item


class Outbox:
    """What a step has for its readers, handed over with one wake-up a loop. Used by the engine's thread only."""

    def __init__(self) -> None:
        self._boxes: dict[asyncio.AbstractEventLoop, list[tuple[ChunkQueue, Item]]] = {}

    def add(self, queue: ChunkQueue, item: Item) -> None:
        """Have ``item`` handed over by the next ``send``."""
        self._boxes.setdefault(queue.loop, []).append((queue, item))

    def send(self) -> list[ChunkQueue]:
        """Hand everything over. Returns the queues whose event loop is closed: their readers are gone."""
        boxes, self._boxes = self._boxes, {}
        lost: list[ChunkQueue] = []
        for loop, items in boxes.items():
            try:
                loop.call_soon_threadsafe(_hand_over, items)
            except RuntimeError:
                if not loop.is_closed():
                    raise
                lost += [queue for queue, _ in items]
        return lost


def _hand_over(items: list[tuple[ChunkQueue, Item]]) -> None:
    for queue, item in items:
        queue.put(item)


@dataclass(slots=True, eq=False)
class Generation:
    """One request on its way through the engine, filled token by token. Only the engine's thread touches it."""

    queue: ChunkQueue
    sampling: Sampling
    prompt: Ids
    stream: bool
    limit: int
    """The most tokens to sample."""
    stops: StopStrings | None
    grammar: GrammarState | None = None
    epoch: int = -1
    """The engine's count of weights under which its KV was begun; only KV of one epoch is shared."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    sent: int = 0
    """How many of ``ids`` have been delivered."""
    stop_string: str | None = None

    @property
    def length(self) -> int:
        """How many tokens prompt and sampled tokens are so far."""
        return len(self.prompt) + len(self.ids)

    @property
    def tokens(self) -> Ids:
        """Prompt and sampled tokens."""
        return np.concatenate([self.prompt, np.array(self.ids, np.int64)])

    def add(self, token: int, logprob: float, version: int) -> FinishReason | None:
        """Take a sampled token. Returns why the generation ends with it, or ``None`` where it goes on."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.versions.append(version)
        if token in self.sampling.stop_ids:
            return "stop"
        if self.stops is not None:
            self.stop_string = self.stops.found(self.ids)
            if self.stop_string is not None:
                return "stop"
        if self.grammar is not None and self.grammar.accept(token):
            return "stop"
        return "length" if len(self.ids) >= self.limit else None

    def chunk(self, finish: FinishReason | None) -> Chunk:
        """Returns what has been sampled since the last chunk; ``finish`` is set on the last one only."""
        new = slice(self.sent, None)
        self.sent = len(self.ids)
        return Chunk(
            ids=tuple(self.ids[new]),
            logprobs=tuple(self.logprobs[new]),
            versions=tuple(self.versions[new]),
            top_logprobs=tuple(self.top_logprobs[new]),
            finish=finish,
            stop_string=self.stop_string,
        )


class Engine:
    """Single-threaded: its owner calls ``submit``, ``cancel``, ``update`` and ``step`` in turn.

    ``prefill_budget`` is the most prompt tokens that one step computes; ``version`` is the policy version of the
    decoder's weights. ``recomputes`` says whether what is in flight at a change of weights begins its KV anew under the
    new ones; else it goes on with what it has.
    """

    def __init__(
        self,
        decoder: Decoder,
        limits: EngineLimits,
        batch: DecodeBatch,
        prefixes: PrefixCache,
        *,
        prefill_budget: int,
        version: int,
        recomputes: bool = False,
    ) -> None:
        self.limits = limits
        self.version = version
        self.counters = Counters()
        self._outbox = Outbox()
        self._decoder = decoder
        self._batch = batch
        self._prefixes = prefixes
        self._prefill_budget = prefill_budget
        self._recomputes = recomputes
        self._epoch = 0
        self._waiting: deque[Generation] = deque()
        self._prefills: deque[PrefillBatch] = deque()
        self._pending: dict[bytes, Prompt] = {}
        """Prompts of this epoch that are being computed, by their ids."""
        self._live: dict[ChunkQueue, Generation] = {}

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._live)

    def snapshot(self) -> Counters:
        """Returns the counters as they are now. May be called from any thread."""
        waiting = len(self._waiting)
        return replace(self.counters, running=len(self._live) - waiting, waiting=waiting)

    def submit(self, generation: Generation) -> None:
        """Queue a generation."""
        self._live[generation.queue] = generation
        self._waiting.append(generation)

    def cancel(self, queue: ChunkQueue) -> None:
        """Drop the generation of a queue, wherever it is; nothing happens where it has ended."""
        generation = self._live.pop(queue, None)
        if generation is None:
            return
        if generation in self._batch.generations:
            self._batch.remove(self._batch.generations.index(generation))
        elif generation in self._waiting:
            self._waiting.remove(generation)
        else:
            self._leave_prefill(generation)

    def fail_all(self, error: BackendError) -> None:
        """End everything in flight with an error. Asks nothing of the device, which may be what failed."""
        live = list(self._live.values())
        for held in (self._batch, self._waiting, self._prefills, self._pending, self._live):
            held.clear()
        self._send_error(live, error)

    def update(self, weights: Weights) -> None:
        """Take new weights: from here on tokens are of their version, and no earlier KV is shared.

        Raises ``BackendError``, with nothing changed, where they do not fit the model.
        """
        self._decoder.load(weights)
        self.version = weights.version
        self._epoch += 1
        self._prefixes.clear()
        self._pending.clear()
        if self._recomputes:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Let everything in flight wait again, oldest first, with the tokens that it has and without their KV."""
        waiting = set(self._waiting)
        self._waiting.extendleft(reversed([each for each in self._live.values() if each not in waiting]))
        self._prefills.clear()
        self._batch.clear()

    def held(self) -> HeldWeights:
        """Returns the digests of the parameters as they are in the decoder's memory now."""
        parameters = self._decoder.model.named_parameters()
        tensors = {
            name: TensorDigest(str(each.dtype).removeprefix("torch."), tuple(each.shape), tensor_digest(each))
            for name, each in parameters
        }
        return HeldWeights(self.version, tensors)

    def score(self, ids: Ids) -> list[float]:
        """Returns the log-probabilities of ``ids[1:]`` at temperature 1, computed as a request's are.

        Each comes from a decoding step of its own row, over KV that is computed for this call and not kept. It takes
        one CPU thread, because the learner scores the same tokens beside it.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._scored(ids)
        finally:
            torch.set_num_threads(threads)

    def _scored(self, ids: Ids) -> list[float]:
        prompt = Prompt(ids[:-1], [])
        prefill = PrefillBatch([prompt], self._decoder, self._epoch)
        while not prefill.finished:
            prefill.run(self._prefill_budget)
        known, logprobs = prefill.prefix(0), []
        block = KVBlock(self._decoder.layout, FEWEST_ROWS * _SCORED_ROWS, round_up(len(ids)))
        for row in range(block.rows):
            block.write(row, 0, known)
        for start in range(0, len(ids) - 1, block.rows):
            positions = np.arange(start, min(start + block.rows, len(ids) - 1))
            # Each row writes the KV of its one token again, which rounding alone can change.
            logits_BV = self._decoder.decode(ids[positions], positions, block).float()
            next_B1 = torch.from_numpy(ids[positions + 1]).to(logits_BV.device)[:, None]
            logprobs += logits_BV.log_softmax(-1).gather(1, next_B1)[:, 0].tolist()
        return logprobs

    def step(self) -> None:
        """Advance everything in flight by one round. What a request or the model breaks is told to its readers."""
        begun = time.perf_counter()
        self._admit()
        self._prefill()
        if self._batch.generations:
            self._decode()
        self.deliver()
        self.counters.steps += 1
        self.counters.busy_seconds += time.perf_counter() - begun

    def deliver(self) -> None:
        """Hand over the chunks and errors that have come up; generations whose reader is gone are cancelled."""
        for queue in self._outbox.send():
            self.cancel(queue)

    # Admission

    def _admit(self) -> None:
        """Move waiting generations, oldest first, to prefill or decoding as far as rows and KV cache allow."""
        fresh: list[Prompt] = []
        claimed = len(self._live) - len(self._waiting) - len(self._batch)
        longest = max((len(prompt.ids) for prefill in self._prefills for prompt in prefill.prompts), default=0)
        while self._waiting:
            longest = max(longest, self._waiting[0].length)
            if not self._batch.fits(claimed + 1, longest):
                break
            claimed += self._begin(self._waiting.popleft(), fresh)
        for prompts in prefill_groups(fresh, self._prefill_budget):
            self._prefills.append(PrefillBatch(prompts, self._decoder, self._epoch))

    def _begin(self, generation: Generation, fresh: list[Prompt]) -> bool:
        """Give a generation a row where all its KV is known; else let it wait for its prompt.

        The prompt may be one that is being computed for another generation; a new one is added to ``fresh``. Returns
        whether the generation waits.
        """
        generation.epoch = self._epoch
        body = generation.tokens[:-1]
        self.counters.prompt_tokens += len(body)
        prompt = self._pending.get(body.tobytes())
        if prompt is not None:
            self.counters.prefix_hit_tokens += len(body)
            prompt.waiting.append(generation)
            return True
        prompt = Prompt(body, self._prefixes.match(body), [generation])
        self.counters.prefix_hit_tokens += prompt.start
        if prompt.missing:
            self._pending[body.tobytes()] = prompt
            fresh.append(prompt)
            return True
        self._add_row(generation, prompt.known)
        return False

    def _add_row(self, generation: Generation, prefix: list[Segment]) -> None:
        """Let a generation decode; where memory does not suffice, it alone fails."""
        try:
            self._batch.add(generation, prefix)
        except Exception as error:
            self._fail([generation], model_failed(error))

    # Prompts

    def _leave_prefill(self, generation: Generation) -> None:
        """Let a generation wait for its prompt no longer, and end a prefill that nobody waits for."""
        for prefill in [each for each in self._prefills if each.drop(generation) and not each.wanted]:
            self._prefills.remove(prefill)
            self._close(prefill)

    def _close(self, prefill: PrefillBatch) -> None:
        """From now on no generation may join the prefill's prompts."""
        if prefill.epoch == self._epoch:
            for prompt in prefill.prompts:
                del self._pending[prompt.ids.tobytes()]

    def _prefill(self) -> None:
        """Compute prompts in turn, within the budget of a step."""
        budget = self._prefill_budget
        for prefill in list(self._prefills):
            try:
                budget -= prefill.run(budget)
            except Exception as error:
                self._fail([each for prompt in prefill.prompts for each in prompt.waiting], model_failed(error))
            else:
                self._prefills.rotate(-1)
                if prefill.finished:
                    self._install(prefill)
            if budget <= 0:
                return

    def _install(self, prefill: PrefillBatch) -> None:
        """Let all who waited for a finished prefill decode, and keep its KV for later prompts."""
        self._prefills.remove(prefill)
        self._close(prefill)
        for row, prompt in enumerate(prefill.prompts):
            segment = prefill.prefix(row)
            for generation in prompt.waiting:
                self._add_row(generation, [segment])
            if prefill.epoch == self._epoch:
                self._prefixes.insert(prompt.ids, segment)

    # Decoding

    def _decode(self) -> None:
        """Sample one token in every row."""
        batch = self._batch
        try:
            self._waiting.extendleft(batch.make_room())
            rules = batch.rules()
            drawn = sample(self._decoder.decode(batch.ids, batch.positions, batch.block), rules)
        except Exception as error:
            failed = list(batch.generations)
            batch.clear()
            self._fail(failed, model_failed(error))
            return
        batch.advance(drawn.ids)
        self.counters.tokens += len(drawn.ids)
        finished = self._distribute(drawn)
        for row, finish in reversed(finished):
            self._finish(row, finish)

    def _distribute(self, drawn: DrawnTokens) -> list[tuple[int, FinishReason | BackendError]]:
        """Give every generation its token. Returns the rows that end with it, and how."""
        ended: list[tuple[int, FinishReason | BackendError]] = []
        for row, (generation, token, logprob) in enumerate(
            zip(self._batch.generations, drawn.ids, drawn.logprobs, strict=True)
        ):
            if logprob != logprob:
                ended.append((row, _not_finite()))
                continue
            if generation.sampling.top_logprobs:
                pairs = zip(drawn.top_ids[row], drawn.top_logprobs[row], strict=True)
                likeliest = tuple(pairs)[: generation.sampling.top_logprobs]
                # Where a grammar allows fewer tokens than are asked for, the rest are impossible.
                generation.top_logprobs.append(tuple(pair for pair in likeliest if pair[1] > -math.inf))
            finish: FinishReason | BackendError | None
            try:
                finish = generation.add(token, logprob, self.version)
            except BackendError as error:
                finish = error
            if finish is not None:
                ended.append((row, finish))
            elif generation.stream:
                self._outbox.add(generation.queue, generation.chunk(None))
        return ended

    def _finish(self, row: int, finish: FinishReason | BackendError) -> None:
        generation = self._batch.generations[row]
        if isinstance(finish, BackendError):
            self._batch.block.wipe(row)
            self._fail([generation], finish)
            return
        if generation.epoch == self._epoch:
            self._prefixes.insert(generation.tokens[:-1], self._batch.prefix(row))
        self._batch.remove(row)
        del self._live[generation.queue]
        self._outbox.add(generation.queue, generation.chunk(finish))

    def _fail(self, generations: Sequence[Generation], error: BackendError) -> None:
        for generation in generations:
            self.cancel(generation.queue)
        self._send_error(generations, error)

    def _send_error(self, generations: Sequence[Generation], error: BackendError) -> None:
        for generation in generations:
            # One exception object each: every reader adds its own traceback.
            own = BackendError(error.message, fix=error.fix)
            own.__cause__ = error.__cause__
            self._outbox.add(generation.queue, own)


def model_failed(error: Exception, what: str = "the model failed on this batch") -> BackendError:
    """Returns the error for readers where ``what`` was caused by ``error``, which becomes its cause."""
    failure = BackendError(
        f"{what}: {type(error).__name__}: {shortened(one_line(error), 300)}",
        fix="see the cause; where memory ran out, lower inference.backend.kv_cache_tokens or rollout.concurrency",
    )
    failure.__cause__ = error
    return failure


def _not_finite() -> BackendError:
    return BackendError(
        "the model's logits are not finite numbers: its weights have diverged",
        fix="lower training.learning_rate, or start from an earlier checkpoint",
    )
