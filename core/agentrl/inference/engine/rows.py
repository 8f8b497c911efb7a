"""The completions that decode: one row of KV and of sampling state each, without holes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from agentrl.inference.engine.decoder import FEWEST_ROWS
from agentrl.inference.engine.kv import GRAIN, KVBlock, KVLayout, Segment, round_up
from agentrl.inference.engine.request import Completion
from agentrl.inference.engine.sampler import Rules, uniforms

__all__ = ["Rows"]

_STATE = np.dtype(
    [
        ("id", "i8"),
        ("position", "i8"),
        ("temperature", "f8"),
        ("top_p", "f8"),
        ("top_k", "i8"),
        ("seed", "u8"),
        ("top_logprobs", "i8"),
    ]
)
"""``id`` is the token whose KV comes next, at ``position``: all before it is in the block."""


class Rows:
    """At most ``max_rows`` rows in a block of at most ``max_tokens`` tokens, which grows as rows and lengths do."""

    def __init__(self, layout: KVLayout, max_rows: int, context_length: int, max_tokens: int) -> None:
        self.max_rows = max_rows
        self.completions: list[Completion] = []
        self._max_capacity = round_up(context_length)
        self._max_tokens = max_tokens
        self._state = np.zeros(max_rows, _STATE)
        self.block = KVBlock(layout, FEWEST_ROWS, GRAIN)

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def ids(self) -> np.ndarray:
        """``[B]``: each row's next token to compute."""
        return self._state["id"][: len(self)]

    @property
    def positions(self) -> np.ndarray:
        """``[B]``: where it goes."""
        return self._state["position"][: len(self)]

    def fits(self, rows: int, length: int) -> bool:
        """Whether so many more rows, the longest of ``length`` tokens, have room. One row alone always has."""
        longest = round_up(max(length, int(self.positions.max(initial=0))) + GRAIN)
        rows += len(self)
        return rows <= self.max_rows and (rows == 1 or rows * longest <= self._max_tokens)

    def add(self, completion: Completion, prefix: list[Segment]) -> None:
        """Let a completion decode whose tokens but the last have their KV in ``prefix``."""
        tokens, row, sampling = completion.tokens, len(self), completion.sampling
        self._reserve(row + 1, len(tokens))
        position = self.block.write_prefix(row, prefix)
        self._state[row] = (
            tokens[-1],
            position,
            sampling.temperature,
            sampling.top_p,
            sampling.top_k,
            int(sampling.seed) & 0xFFFF_FFFF_FFFF_FFFF,
            sampling.top_logprobs,
        )
        self.completions.append(completion)

    def remove(self, row: int) -> None:
        """Free a row; the last one takes its place."""
        last = len(self) - 1
        if row != last:
            self.block.move(last, row, int(self._state["position"][last]))
            self._state[row] = self._state[last]
            self.completions[row] = self.completions[last]
        self.completions.pop()

    def make_room(self) -> Iterator[Completion]:
        """See that every row can take one more token; yields the completions that had to give way, youngest first."""
        while len(self) > 1 and len(self) * round_up(self._longest()) > self._max_tokens:
            yield self.completions[-1]
            self.remove(len(self) - 1)
        self._reserve(len(self), self._longest())

    def advance(self, ids: list[int]) -> None:
        """Make the sampled tokens the next to compute."""
        self._state["id"][: len(self)] = ids
        self._state["position"][: len(self)] += 1

    def rules(self) -> Rules:
        """How the rows' next tokens are sampled."""
        state = self._state[: len(self)]
        return Rules.of(
            temperature=state["temperature"],
            top_p=state["top_p"],
            top_k=state["top_k"],
            uniform=uniforms(state["seed"], state["position"]),
            top_logprobs=int(state["top_logprobs"].max(initial=0)),
            device=self.block.layout.device,
        )

    def prefix(self, row: int) -> Segment:
        """KV of all tokens of a row but the next to compute."""
        return self.block.read(row, 0, int(self._state["position"][row]))

    def _longest(self) -> int:
        return int(self.positions.max(initial=0)) + 1

    def _reserve(self, rows: int, length: int) -> None:
        """Grow the block to hold so many rows and tokens, twofold where the bounds allow it."""
        block = self.block
        if rows <= block.rows and length <= block.capacity:
            return
        wanted_rows, wanted_capacity = max(rows, block.rows), max(round_up(length), block.capacity)
        if rows > block.rows:
            wanted_rows = min(max(rows, 2 * block.rows), self.max_rows)
        if length > block.capacity:
            wanted_capacity = min(max(round_up(length), 2 * block.capacity), self._max_capacity)
        if wanted_rows * wanted_capacity > self._max_tokens:
            wanted_rows, wanted_capacity = rows, round_up(max(length, self._longest()))
        self.block = block.resized(wanted_rows, wanted_capacity)
