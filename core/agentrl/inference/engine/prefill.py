"""Prompts: how their KV is computed, side by side and in pieces, and what they have in common only once.

A prompt that begins as another does *follows* it: its computation starts when the other's is done, from the KV of their
common beginning. That is also how prompts join one that is being computed when they arrive.

Shapes: ``B`` rows of a forward, ``Q`` tokens a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from agentrl.inference.engine.cache import FEWEST_ROWS, Ids, KVBlock, Segment, common_length, round_up

if TYPE_CHECKING:
    from agentrl.inference.engine.generation import Generation
    from agentrl.inference.engine.model import Decoder

__all__ = ["WORTH_A_FORWARD", "PrefillBatch", "Prompt", "followed", "prefill_groups", "with_common_beginnings"]

WORTH_A_FORWARD = 64
"""Computing so many tokens costs more than a forward of its own, and than waiting for one."""


@dataclass(slots=True, eq=False)
class Prompt:
    """Tokens whose KV is to be computed, and the generations that wait for it."""

    ids: Ids
    known: list[Segment]
    """KV of the first tokens, from the prefix cache."""
    waiting: list[Generation] = field(default_factory=list)
    followers: list[Prompt] = field(default_factory=list)
    """Prompts that begin alike and are computed after this one, from its KV on."""
    reused: int = 0
    """Tokens of ``start`` that were computed for another prompt; below 0 where this one is computed for others only."""
    start: int = field(init=False)
    """How many tokens ``known`` holds, or of a follower will hold."""

    def __post_init__(self) -> None:
        self.start = sum(segment[0].shape[2] for segment in self.known)

    @property
    def missing(self) -> int:
        """How many tokens are still to be computed."""
        return len(self.ids) - self.start

    def all(self) -> Iterator[Prompt]:
        """Yields the prompt and all that follow it, at any remove."""
        yield self
        for follower in self.followers:
            yield from follower.all()

    def follow(self, leader: Prompt, common: int) -> None:
        """Go on from the first ``common`` tokens of another prompt's KV once that is computed."""
        self.reused += common - self.start
        self.known, self.start = [], common
        leader.followers.append(self)


class PrefillBatch:
    """Prompts whose KV is computed side by side, in a block of their own.

    They are computed in pieces, so that decoding goes on in between. ``epoch`` counts the weights that the batch
    began with: its KV is shared only within that epoch.
    """

    def __init__(self, prompts: Sequence[Prompt], decoder: Decoder, epoch: int) -> None:
        self.prompts = prompts
        self.epoch = epoch
        self._decoder = decoder
        self._done = 0
        self._width = _whole(max(prompt.missing for prompt in prompts) + FEWEST_ROWS - 1)

    @cached_property
    def block(self) -> KVBlock:
        """KV of the prompts, one row each; allocated when the first piece is computed."""
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

    @property
    def wanted(self) -> bool:
        """Whether any generation still waits for one of the prompts."""
        return any(each.waiting for prompt in self.prompts for each in prompt.all())

    def run(self, budget: int) -> int:
        """Compute about ``budget`` tokens, at least ``FEWEST_ROWS`` of each prompt. Returns how many, with padding."""
        width = min(max(_whole(budget // len(self.prompts)), FEWEST_ROWS), self._width - self._done)
        columns = np.arange(self._done, self._done + width)
        starts = np.array([prompt.start for prompt in self.prompts])
        lengths = np.array([len(prompt.ids) for prompt in self.prompts])
        # Padding of a short prompt goes to the column after its last, where the next token overwrites it.
        positions_BQ = np.minimum(starts[:, None] + columns, lengths[:, None])
        ids_BQ = np.zeros_like(positions_BQ)
        for row, prompt in enumerate(self.prompts):
            piece = prompt.ids[prompt.start + self._done : prompt.start + self._done + width]
            ids_BQ[row, : len(piece)] = piece
        self._decoder.prefill(ids_BQ, positions_BQ, self.block)
        self._done += width
        return width * len(self.prompts)

    def prefix(self, row: int) -> Segment:
        """Returns the KV of a finished prompt, as views."""
        return self.block.read(row, 0, len(self.prompts[row].ids))

    def drop(self, generation: Generation) -> bool:
        """Let a generation wait no longer. Returns whether it waited here."""
        for prompt in self.prompts:
            for each in prompt.all():
                if generation in each.waiting:
                    each.waiting.remove(generation)
                    return True
        return False


def _whole(tokens: int) -> int:
    """The largest multiple of ``FEWEST_ROWS`` up to ``tokens``: attention is a product of as many rows as tokens."""
    return tokens // FEWEST_ROWS * FEWEST_ROWS


def prefill_groups(prompts: list[Prompt], budget: int) -> Iterator[list[Prompt]]:
    """Yields ``prompts`` in groups of similar length, each a forward of at most ``budget`` tokens where possible."""
    group: list[Prompt] = []
    for prompt in sorted(prompts, key=lambda prompt: prompt.missing):
        # Padding costs as much as tokens do; a forward of its own costs as much as a few tokens.
        if group and ((len(group) + 1) * prompt.missing > budget or prompt.missing > 2 * group[0].missing + 16):
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


def with_common_beginnings(prompts: Sequence[Prompt], depth: int = 0) -> list[Prompt]:
    """Returns what to compute first of ``prompts``, which agree in their first ``depth`` tokens.

    Where several have so much in common that computing it once is worth a forward of its own, that is a prompt which
    they follow: one of them that is nothing but their common beginning, or a new one that nobody waits for.
    """
    alike: dict[int, list[Prompt]] = {}
    first: list[Prompt] = []
    for prompt in prompts:
        if len(prompt.ids) > depth:
            alike.setdefault(int(prompt.ids[depth]), []).append(prompt)
        else:
            first.append(prompt)
    for group in alike.values():
        common = min((common_length(group[0].ids, other.ids) for other in group[1:]), default=0)
        behind, beyond = ([each for each in group if (each.start < common) is so] for so in (True, False))
        if sum(common - prompt.start for prompt in behind[1:]) >= WORTH_A_FORWARD:
            first += [_leader(behind, common), *beyond]
        else:
            first += with_common_beginnings(group, common) if len(group) > 1 else group
    return first


def _leader(prompts: list[Prompt], common: int) -> Prompt:
    """What ``prompts`` have in common, followed by all of them but itself."""
    whole = next((prompt for prompt in prompts if len(prompt.ids) == common), None)
    leader = whole or Prompt(prompts[0].ids[:common], prompts[0].known, reused=prompts[0].start - common)
    for prompt in prompts:
        if prompt is not leader:
            prompt.follow(leader, common)
    return leader


def followed(prompt: Prompt, computing: Iterable[Prompt]) -> bool:
    """Let ``prompt`` follow the one of ``computing`` with which it has most in common. Returns whether that is worth
    the wait."""
    common, leader = max(
        ((common_length(prompt.ids, each.ids), each) for each in computing), key=lambda pair: pair[0], default=(0, None)
    )
    if leader is None or common - prompt.start < WORTH_A_FORWARD:
        return False
    prompt.follow(leader, common)
    return True
