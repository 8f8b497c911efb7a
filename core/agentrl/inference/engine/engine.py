"""The engine: the generations in flight, and the steps that advance them.

Each step admits waiting generations, computes prompts, decodes one token in every row and delivers what was sampled.
A prompt's KV is computed for all its tokens but the last, which then goes through decoding like every sampled token.
So sampling happens in one place, and a prompt whose KV is known costs no forward of its own.

KV is shared only within an *epoch*, the time between two changes of weights: what is computed, even partly, under
older weights serves the generations that began with it and nobody else, and not even those where they are to begin it
anew.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from agentrl.errors import BackendError, one_line, shortened
from agentrl.inference.contract import FinishReason, HeldWeights, TensorDigest, Weights
from agentrl.inference.digests import tensor_digest
from agentrl.inference.engine.cache import FEWEST_ROWS, Ids, KVBlock, PrefixCache, Segment, round_up
from agentrl.inference.engine.generation import ChunkQueue, Generation, Outbox
from agentrl.inference.engine.model import Decoder
from agentrl.inference.engine.prefill import PrefillBatch, Prompt, followed, prefill_groups, with_common_beginnings
from agentrl.inference.engine.sampler import DecodeBatch, DrawnTokens, TextDecoder, sample
from agentrl.inference.grammars import Grammars
from agentrl.threads import all_shared, threads

__all__ = ["Counters", "Engine", "EngineLimits", "model_failed"]

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

    def update(self, weights: Weights) -> int:
        """Take new weights: from here on tokens are of their version, and no earlier KV is shared.

        Returns how many bytes of them have come: none where they changed in the engine's own memory, which ``follow``
        has followed. Raises ``BackendError``, with nothing changed, where they do not fit the model.
        """
        if not self._decoder.follows:
            came = self._decoder.load(weights)
            self._turn_to(weights.version)
            return came
        self._decoder.load(weights)
        if weights.version != self.version:
            raise BackendError(
                f"the engine computes with the learner's own memory as version {self.version}, and that is version "
                f"{weights.version} by now: the learner changed it without having the engine pause",
                fix="set inference.backend.share_weights=false",
            )
        return 0

    def follow(self) -> None:
        """As ``update``, where new numbers are in the memory that the engine shares with the learner."""
        if self._decoder.shared is not None:
            self._decoder.refresh()
            self._turn_to(self._decoder.shared.weights.version)

    def _turn_to(self, version: int) -> None:
        self.version = version
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
        with threads(1):
            return self._scored(ids)

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
        computing = (each for prefill in self._prefills for prompt in prefill.prompts for each in prompt.all())
        longest = max((len(prompt.ids) for prompt in computing), default=0)
        while self._waiting:
            longest = max(longest, self._waiting[0].length)
            if not self._batch.fits(claimed + 1, longest):
                break
            claimed += self._begin(self._waiting.popleft(), fresh)
        self._compute(fresh, self._epoch)

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
            self._forget(each for prompt in prefill.prompts for each in prompt.all())

    def _forget(self, prompts: Iterable[Prompt]) -> None:
        """From now on no generation may join the prompts."""
        for prompt in prompts:
            if self._pending.get(prompt.ids.tobytes()) is prompt:
                del self._pending[prompt.ids.tobytes()]

    def _compute(self, prompts: Sequence[Prompt], epoch: int) -> list[PrefillBatch]:
        """Begin with prompts, or let them follow others that have much in common with them. Returns the new batches."""
        computing = [each for prefill in self._prefills if prefill.epoch == epoch for each in prefill.prompts]
        first = with_common_beginnings([prompt for prompt in prompts if not followed(prompt, computing)])
        groups = prefill_groups(first, self._prefill_budget)
        begun = [PrefillBatch(group, self._decoder, epoch) for group in groups]
        self._prefills.extend(begun)
        return begun

    def _prefill(self) -> None:
        """Compute prompts in turn, within the budget of a step."""
        budget, turns = self._prefill_budget, deque(self._prefills)
        while turns and budget > 0:
            prefill = turns.popleft()
            try:
                with all_shared():
                    budget -= prefill.run(budget)
            except Exception as error:
                waiting = [each for prompt in prefill.prompts for follower in prompt.all() for each in follower.waiting]
                self._fail(waiting, model_failed(error))
            else:
                self._prefills.remove(prefill)
                self._prefills.append(prefill)
                if prefill.finished:
                    turns.extend(self._install(prefill))

    def _install(self, prefill: PrefillBatch) -> list[PrefillBatch]:
        """Let all who waited for a finished prefill decode, and keep its KV for later prompts. Returns the batches of
        those that follow its prompts."""
        self._prefills.remove(prefill)
        finished = [(prompt, prefill.prefix(row)) for row, prompt in enumerate(prefill.prompts)]
        following: list[Prompt] = []
        for prompt, segment in finished:
            for generation in prompt.waiting:
                self._add_row(generation, [segment])
            self.counters.prefix_hit_tokens += prompt.reused
            self._forget([prompt])
            if prefill.epoch == self._epoch:
                self._prefixes.insert(prompt.ids, segment)
            for follower in prompt.followers:
                known: Segment = tuple(part[:, :, : follower.start] for part in segment)
                if not any(each.waiting for each in follower.all()):
                    self._forget(follower.all())
                elif follower.missing:
                    follower.known = [known]
                    following.append(follower)
                else:
                    finished.append((follower, known))
        return self._compute(following, prefill.epoch)

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
