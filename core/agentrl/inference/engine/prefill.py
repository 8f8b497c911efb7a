"""Computing prompts: batches of them, in pieces of at most so many tokens, so that decoding goes on between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from agentrl.inference.engine.decoder import FEWEST_ROWS, Decoder
from agentrl.inference.engine.kv import KVBlock, Segment, round_up
from agentrl.inference.engine.prefixes import Ids
from agentrl.inference.engine.request import Completion

__all__ = ["Job", "Prompt", "jobs_of"]


@dataclass(slots=True, eq=False)
class Prompt:
    """Tokens whose KV is wanted, and the completions that wait for it."""

    ids: Ids
    known: list[Segment]
    """KV of its first tokens, from the prefix cache."""
    completions: list[Completion] = field(default_factory=list)
    start: int = field(init=False)

    def __post_init__(self) -> None:
        self.start = sum(segment[0].shape[2] for segment in self.known)

    @property
    def missing(self) -> int:
        """How many tokens are to be computed."""
        return len(self.ids) - self.start


class Job:
    """Prompts computed side by side in a block of their own."""

    def __init__(self, prompts: Sequence[Prompt], decoder: Decoder, generation: int) -> None:
        self.prompts = prompts
        self.generation = generation
        self._decoder = decoder
        self._done = 0
        self._width = _whole(max(prompt.missing for prompt in prompts) + FEWEST_ROWS - 1)

    @cached_property
    def block(self) -> KVBlock:
        """KV of the prompts, one row each; made when the first piece is computed."""
        longest = max(len(prompt.ids) for prompt in self.prompts)
        block = KVBlock(self._decoder.layout, len(self.prompts), round_up(longest + 1))
        for row, prompt in enumerate(self.prompts):
            block.write_prefix(row, prompt.known)
            prompt.known = []
        return block

    @property
    def finished(self) -> bool:
        """Whether every prompt has its KV."""
        return self._done >= self._width

    def run(self, budget: int) -> int:
        """Compute at most ``budget`` tokens, but a few of each prompt; returns how many, padding included."""
        width = min(max(_whole(budget // len(self.prompts)), FEWEST_ROWS), self._width - self._done)
        columns = np.arange(self._done, self._done + width)
        starts = np.array([prompt.start for prompt in self.prompts])
        lengths = np.array([len(prompt.ids) for prompt in self.prompts])
        # What pads a short prompt goes to the column after its last, where the next token overwrites it.
        positions = np.minimum(starts[:, None] + columns, lengths[:, None])
        ids = np.zeros_like(positions)
        for row, prompt in enumerate(self.prompts):
            piece = prompt.ids[prompt.start + self._done : prompt.start + self._done + width]
            ids[row, : len(piece)] = piece
        self._decoder.prefill(ids, positions, self.block)
        self._done += width
        return width * len(self.prompts)

    def prefix(self, row: int) -> Segment:
        """KV of a finished prompt."""
        return self.block.read(row, 0, len(self.prompts[row].ids))

    def drop(self, completion: Completion) -> bool:
        """Forget a completion; whether it was here."""
        for prompt in self.prompts:
            if completion in prompt.completions:
                prompt.completions.remove(completion)
                return True
        return False

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for it."""
        return any(prompt.completions for prompt in self.prompts)


def _whole(tokens: int) -> int:
    """The next smaller multiple of ``FEWEST_ROWS``: attention, too, is a product of as many rows as it has tokens."""
    return tokens // FEWEST_ROWS * FEWEST_ROWS


def jobs_of(prompts: list[Prompt], budget: int) -> Iterator[list[Prompt]]:
    """Prompts grouped so that those of similar length share a forward of at most ``budget`` tokens."""
    batch: list[Prompt] = []
    for prompt in sorted(prompts, key=lambda prompt: prompt.missing):
        # Padding costs as much as tokens do; a forward of its own as much as a few.
        if batch and ((len(batch) + 1) * prompt.missing > budget or prompt.missing > 2 * batch[0].missing + 16):
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch
