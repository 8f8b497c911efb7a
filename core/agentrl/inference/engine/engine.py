"""One step of the engine after another: admit, compute prompts, decode a token in every row, deliver.

A prompt's KV is computed for all its tokens but the last, which then goes through decoding like every
sampled token. So sampling happens in one place, and a prompt whose KV is known costs no forward of its own.

KV is shared only within a *generation*, the time between two changes of weights: what is computed, even
partly, under older weights serves the requests that began with it and nobody else.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from agentrl.errors import BackendError, one_line, shortened
from agentrl.inference.contract import FinishReason, Weights
from agentrl.inference.engine.counters import Counters
from agentrl.inference.engine.decoder import Decoder
from agentrl.inference.engine.delivery import Post, Ticket
from agentrl.inference.engine.kv import Segment
from agentrl.inference.engine.prefill import Job, Prompt, jobs_of
from agentrl.inference.engine.prefixes import PrefixCache
from agentrl.inference.engine.request import Completion, Limits
from agentrl.inference.engine.rows import Rows
from agentrl.inference.engine.sampler import Draw, sample
from agentrl.inference.engine.weights import load_weights

__all__ = ["Engine"]


class Engine:
    """Single-threaded: whoever owns it calls ``submit``, ``cancel``, ``update`` and ``step`` in turn."""

    def __init__(
        self, decoder: Decoder, limits: Limits, rows: Rows, prefixes: PrefixCache, budget: int, version: int
    ) -> None:
        self.limits = limits
        self.version = version
        self.counters = Counters()
        self.post = Post()
        self._decoder = decoder
        self._rows = rows
        self._prefixes = prefixes
        self._budget = budget
        self._generation = 0
        self._waiting: deque[Completion] = deque()
        self._jobs: deque[Job] = deque()
        self._pending: dict[bytes, Prompt] = {}
        self._live: dict[Ticket, Completion] = {}

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._live)

    def snapshot(self) -> Counters:
        """The counters as they are now; may be called from any thread."""
        waiting = len(self._waiting)
        return replace(self.counters, running=len(self._live) - waiting, waiting=waiting)

    def submit(self, completion: Completion) -> None:
        """Queue a completion."""
        self._live[completion.ticket] = completion
        self._waiting.append(completion)

    def cancel(self, ticket: Ticket) -> None:
        """Drop a completion wherever it is; one that has ended is no matter."""
        completion = self._live.pop(ticket, None)
        if completion is None:
            return
        if completion in self._rows.completions:
            self._rows.remove(self._rows.completions.index(completion))
        elif completion in self._waiting:
            self._waiting.remove(completion)
        else:
            self._forget(completion)

    def fail_all(self, error: BackendError) -> None:
        """End everything in flight with an error. Asks nothing of the device, which may be what failed."""
        live = list(self._live.values())
        for held in (self._rows.completions, self._waiting, self._jobs, self._pending, self._live):
            held.clear()
        self._tell(live, error)

    def update(self, weights: Weights) -> None:
        """Take new weights; from here on tokens are of their version and no earlier KV is shared.

        Raises ``BackendError``, with nothing changed, where they do not fit the model.
        """
        load_weights(self._decoder.model, weights)
        self.version = weights.version
        self._generation += 1
        self._prefixes.clear()
        self._pending.clear()

    def step(self) -> None:
        """One round. Raises nothing that a request or the model can cause: those concerned are told."""
        begun = time.perf_counter()
        self._admit()
        self._prefill()
        if self._rows.completions:
            self._decode()
        self.deliver()
        self.counters.steps += 1
        self.counters.busy_seconds += time.perf_counter() - begun

    def deliver(self) -> None:
        """Hand over what there is."""
        for ticket in self.post.send():
            self.cancel(ticket)

    # Admission

    def _admit(self) -> None:
        fresh: list[Prompt] = []
        claimed = len(self._live) - len(self._waiting) - len(self._rows)
        longest = max((len(prompt.ids) for job in self._jobs for prompt in job.prompts), default=0)
        while self._waiting:
            longest = max(longest, self._waiting[0].length)
            if not self._rows.fits(claimed + 1, longest):
                break
            claimed += self._place(self._waiting.popleft(), fresh)
        for batch in jobs_of(fresh, self._budget):
            self._jobs.append(Job(batch, self._decoder, self._generation))

    def _place(self, completion: Completion, fresh: list[Prompt]) -> bool:
        """Let it decode where all KV is known; else it waits for whoever computes the same, or for one of ``fresh``.

        Returns whether it waits.
        """
        completion.generation = self._generation
        body = completion.tokens[:-1]
        self.counters.prompt_tokens += len(body)
        prompt = self._pending.get(body.tobytes())
        if prompt is not None:
            self.counters.prefix_hit_tokens += len(body)
            prompt.completions.append(completion)
            return True
        prompt = Prompt(body, self._prefixes.match(body), [completion])
        self.counters.prefix_hit_tokens += prompt.start
        if prompt.missing:
            self._pending[body.tobytes()] = prompt
            fresh.append(prompt)
            return True
        self._start(completion, prompt.known)
        return False

    def _start(self, completion: Completion, prefix: list[Segment]) -> None:
        """Give a completion a row; where memory does not suffice, it alone fails."""
        try:
            self._rows.add(completion, prefix)
        except Exception as error:
            self._fail([completion], _broken(error))

    # Prompts

    def _forget(self, completion: Completion) -> None:
        """Take a completion from the job it waits for, and end a job that nobody waits for."""
        for job in [job for job in self._jobs if job.drop(completion) and not job.wanted]:
            self._jobs.remove(job)
            self._close(job)

    def _close(self, job: Job) -> None:
        """Nobody may join a job any more."""
        if job.generation == self._generation:
            for prompt in job.prompts:
                del self._pending[prompt.ids.tobytes()]

    def _prefill(self) -> None:
        budget = self._budget
        for job in list(self._jobs):
            try:
                budget -= job.run(budget)
            except Exception as error:
                self._fail([completion for prompt in job.prompts for completion in prompt.completions], _broken(error))
            else:
                self._jobs.rotate(-1)
                if job.finished:
                    self._install(job)
            if budget <= 0:
                return

    def _install(self, job: Job) -> None:
        """Let everybody who waited for a job decode."""
        self._jobs.remove(job)
        self._close(job)
        for row, prompt in enumerate(job.prompts):
            segment = job.prefix(row)
            for completion in prompt.completions:
                self._start(completion, [segment])
            if job.generation == self._generation:
                self._prefixes.insert(prompt.ids, segment)

    # Decoding

    def _decode(self) -> None:
        rows = self._rows
        try:
            self._waiting.extendleft(rows.make_room())
            rules = rows.rules()
            draw = sample(self._decoder.decode(rows.ids, rows.positions, rows.block), rules)
        except Exception as error:
            failed = list(rows.completions)
            rows.completions.clear()
            self._fail(failed, _broken(error))
            return
        rows.advance(draw.ids)
        self.counters.tokens += len(draw.ids)
        finished = self._record(draw)
        for row, finish in reversed(finished):
            self._finish(row, finish)

    def _record(self, draw: Draw) -> list[tuple[int, FinishReason | BackendError]]:
        """Give every row its token; which rows end with it, and how."""
        ended: list[tuple[int, FinishReason | BackendError]] = []
        for row, (completion, token, logprob) in enumerate(
            zip(self._rows.completions, draw.ids, draw.logprobs, strict=True)
        ):
            if logprob != logprob:
                ended.append((row, _not_finite()))
                continue
            if completion.sampling.top_logprobs:
                pairs = zip(draw.top_ids[row], draw.top_logprobs[row], strict=True)
                completion.tops.append(tuple(pairs)[: completion.sampling.top_logprobs])
            finish = completion.add(token, logprob, self.version)
            if finish is not None:
                ended.append((row, finish))
            elif completion.stream:
                self.post.add(completion.ticket, completion.chunk(None))
        return ended

    def _finish(self, row: int, finish: FinishReason | BackendError) -> None:
        completion = self._rows.completions[row]
        if isinstance(finish, BackendError):
            self._rows.block.wipe(row)
            self._fail([completion], finish)
            return
        if completion.generation == self._generation:
            self._prefixes.insert(completion.tokens[:-1], self._rows.prefix(row))
        self._rows.remove(row)
        del self._live[completion.ticket]
        self.post.add(completion.ticket, completion.chunk(finish))

    def _fail(self, completions: Sequence[Completion], error: BackendError) -> None:
        for completion in completions:
            self.cancel(completion.ticket)
        self._tell(completions, error)

    def _tell(self, completions: Sequence[Completion], error: BackendError) -> None:
        for completion in completions:
            # One exception object each: every reader adds its own traceback.
            own = BackendError(error.message, fix=error.fix)
            own.__cause__ = error.__cause__
            self.post.add(completion.ticket, own)


def _broken(error: Exception) -> BackendError:
    failure = BackendError(
        f"the model failed on this batch: {type(error).__name__}: {shortened(one_line(error), 300)}",
        fix="see the cause; where memory ran out, lower inference.backend.kv_cache_tokens or rollout.concurrency",
    )
    failure.__cause__ = error
    return failure


def _not_finite() -> BackendError:
    return BackendError(
        "the model's logits are not finite numbers: its weights have diverged",
        fix="lower training.learning_rate, or start from an earlier checkpoint",
    )
