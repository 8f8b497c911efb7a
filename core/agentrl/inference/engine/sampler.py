"""Sampling: the rows that decode, how each of them is sampled, and the draw of one token for every row at once.

A token is the inverse of its distribution's cumulative sum at one uniform number, which depends on the request's seed
and the token's position alone: what else is in the batch changes nothing.

Shapes: ``B`` rows, ``V`` vocabulary, ``W`` vocabulary rounded up to whole blocks, ``K`` blocks of ``N`` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

from agentrl.inference.engine.cache import FEWEST_ROWS, GRAIN, KVBlock, KVLayout, Segment, round_up

if TYPE_CHECKING:
    from agentrl.inference.engine.generation import Generation

__all__ = [
    "DecodeBatch",
    "DrawnTokens",
    "LogitChanges",
    "SamplingRules",
    "StopStrings",
    "TextDecoder",
    "sample",
    "uniforms",
    "unpacked_anywhere",
]

_COLDEST = 1e-6
"""float32 cannot divide by a temperature below this."""

_LARGE = 2048
"""A vocabulary beyond this is searched in blocks of ``_BLOCK`` tokens."""

_BLOCK = 128

_ROW_STATE = np.dtype(
    [
        ("id", "i8"),
        ("position", "i8"),
        ("temperature", "f8"),
        ("top_p", "f8"),
        ("top_k", "i8"),
        ("seed", "u8"),
        ("top_logprobs", "i8"),
        ("changed", "i8"),
    ]
)
"""``id`` is the token whose KV comes next, at ``position``: the KV of all before it is in the block. ``changed`` says
whether a grammar or a bias changes the row's logits."""


class DecodeBatch:
    """The generations that decode, one row of KV and of sampling state each, without gaps.

    At most ``max_rows`` rows in a block of at most ``max_tokens`` tokens, which grows as rows and lengths do.
    """

    def __init__(self, layout: KVLayout, max_rows: int, context_length: int, max_tokens: int) -> None:
        self.max_rows = max_rows
        self.generations: list[Generation] = []
        self._max_capacity = round_up(context_length)
        self._max_tokens = max_tokens
        self._state = np.zeros(max_rows, _ROW_STATE)
        self.block = KVBlock(layout, FEWEST_ROWS, GRAIN)

    def __len__(self) -> int:
        return len(self.generations)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """``[B]``: the token of each row whose KV comes next."""
        return self._state["id"][: len(self)]

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """``[B]``: the positions of ``ids``."""
        return self._state["position"][: len(self)]

    def fits(self, rows: int, length: int) -> bool:
        """Whether ``rows`` more rows fit, the longest of them of ``length`` tokens. One row alone always does."""
        longest = round_up(max(length, int(self.positions.max(initial=0))) + GRAIN)
        rows += len(self)
        return rows <= self.max_rows and (rows == 1 or rows * longest <= self._max_tokens)

    def add(self, generation: Generation, prefix: list[Segment]) -> None:
        """Let a generation decode; ``prefix`` is the KV of all its tokens but the last."""
        tokens, row, sampling = generation.tokens, len(self), generation.sampling
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
            generation.grammar is not None or bool(sampling.logit_bias),
        )
        self.generations.append(generation)

    def remove(self, row: int) -> None:
        """Free a row; the last one takes its place."""
        last = len(self) - 1
        if row != last:
            self.block.move(last, row, int(self._state["position"][last]))
            self._state[row] = self._state[last]
            self.generations[row] = self.generations[last]
        self.generations.pop()

    def clear(self) -> None:
        """Free all rows."""
        self.generations.clear()

    def make_room(self) -> Iterator[Generation]:
        """Make room for one more token in every row. Yields the generations that had to give way, youngest first."""
        while len(self) > 1 and len(self) * round_up(self._longest()) > self._max_tokens:
            yield self.generations[-1]
            self.remove(len(self) - 1)
        self._reserve(len(self), self._longest())

    def advance(self, ids: list[int]) -> None:
        """Make the sampled tokens ``ids``, one a row, the next whose KV is computed."""
        self._state["id"][: len(self)] = ids
        self._state["position"][: len(self)] += 1

    def rules(self) -> SamplingRules:
        """Returns how the rows' next tokens are sampled."""
        state = self._state[: len(self)]
        return SamplingRules.of(
            temperature=state["temperature"],
            top_p=state["top_p"],
            top_k=state["top_k"],
            uniform=uniforms(state["seed"], state["position"]),
            top_logprobs=int(state["top_logprobs"].max(initial=0)),
            changes=self._changes(np.flatnonzero(state["changed"])) if state["changed"].any() else None,
            device=self.block.layout.device,
        )

    def _changes(self, rows: npt.NDArray[np.int64]) -> LogitChanges:
        """What grammars and biases change in the logits of ``rows``."""
        changed = [(int(row), self.generations[row]) for row in rows]
        masked = [(row, generation.grammar.row) for row, generation in changed if generation.grammar is not None]
        biased = [(row, *pair) for row, generation in changed for pair in generation.sampling.logit_bias]
        return LogitChanges.of(masked, biased, self.block.layout.device)

    def prefix(self, row: int) -> Segment:
        """Returns the KV of all tokens of a row but the next to compute, as views."""
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


def uniforms(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Returns a number in [0, 1) for each (seed, position): the SplitMix64 sequence of the seed's hash.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    counters = _mix(seeds) + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class LogitChanges:
    """What is done to logits before anything else: biases are added, and what a grammar forbids is ruled out.

    Shapes: ``M`` masked rows, ``D`` biased logits. All tensors are on the device.
    """

    masked_M: torch.Tensor | None
    """The rows that have a grammar; ``None`` where there are none."""
    bits_MK: torch.Tensor | None
    """uint8: the allowed tokens of these rows, eight in each number, the first in its lowest bit."""
    biased_D2: torch.Tensor | None
    """The row and the token of each bias; ``None`` where there are none."""
    bias_D: torch.Tensor | None

    @classmethod
    def of(
        cls,
        masked: Sequence[tuple[int, npt.NDArray[np.int32]]],
        biased: Sequence[tuple[int, int, float]],
        device: torch.device,
    ) -> LogitChanges:
        """Returns the changes by the packed masks of rows, and by biases of the tokens of rows."""
        masked_M = bits_MK = biased_D2 = bias_D = None
        if masked:
            packed = np.stack([mask for _, mask in masked]).astype("<i4", copy=False).view(np.uint8)
            masked_M = torch.tensor([row for row, _ in masked], device=device)
            bits_MK = torch.from_numpy(packed).to(device)
        if biased:
            biased_D2 = torch.tensor([[row, token] for row, token, _ in biased], device=device)
            bias_D = torch.tensor([bias for *_, bias in biased], dtype=torch.float32, device=device)
        return cls(masked_M, bits_MK, biased_D2, bias_D)

    def apply(self, logits_BV: torch.Tensor) -> None:
        """Change ``logits_BV``, float32, in place."""
        if self.biased_D2 is not None and self.bias_D is not None:
            logits_BV.index_put_(tuple(self.biased_D2.T), self.bias_D, accumulate=True)
        if self.masked_M is not None and self.bits_MK is not None:
            forbidden_MV = ~_unpacked(self.bits_MK)[:, : logits_BV.shape[1]]
            logits_BV[self.masked_M] = logits_BV[self.masked_M].masked_fill_(forbidden_MV, -torch.inf)


def _unpacked(bits_MK: torch.Tensor) -> torch.Tensor:
    """The bits of bytes, lowest first, as booleans: ``[M, 8 * K]``."""
    if not bits_MK.is_cuda:  # numpy does it in a tenth of the time.
        return torch.from_numpy(np.unpackbits(bits_MK.numpy(), axis=1, bitorder="little")).view(torch.bool)
    return unpacked_anywhere(bits_MK)


def unpacked_anywhere(bits_MK: torch.Tensor) -> torch.Tensor:
    """As ``_unpacked``, by operations that every device has."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits_MK.device)
    return ((bits_MK[:, :, None] >> shifts) & 1).bool().flatten(1)


@dataclass(frozen=True, slots=True)
class SamplingRules:
    """How each of ``B`` rows is sampled next."""

    greedy: npt.NDArray[np.bool_]
    top_p: npt.NDArray[np.float64]
    top_k: npt.NDArray[np.int64]
    temperature_B1: torch.Tensor
    """On the device; 1 where greedy."""
    uniform_B1: torch.Tensor
    top_logprobs: int
    """How many alternatives to report: the most that any row wants."""
    changes: LogitChanges | None = None
    """``None`` where no row has a grammar or biases."""

    @classmethod
    def of(
        cls,
        *,
        temperature: npt.NDArray[np.float64],
        uniform: npt.NDArray[np.float64],
        top_p: npt.NDArray[np.float64],
        top_k: npt.NDArray[np.int64],
        top_logprobs: int,
        device: torch.device,
        changes: LogitChanges | None = None,
    ) -> SamplingRules:
        """Returns the rules of arrays of length ``B``; ``uniform`` is in [0, 1).

        Made before the forward, because a copy to the device would wait for the forward's end.
        """
        greedy = temperature == 0
        columns = np.stack([np.where(greedy, 1.0, np.maximum(temperature, _COLDEST)), uniform])
        temperature_B1, uniform_B1 = torch.from_numpy(columns).to(device, torch.float32)[:, :, None]
        return cls(greedy, top_p, top_k, temperature_B1, uniform_B1, top_logprobs, changes)


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """One token for each row, on the host."""

    ids: list[int]
    logprobs: list[float]
    """Natural log-probabilities after temperature (of 1 where greedy), before ``top_p`` and ``top_k``."""
    top_ids: list[list[int]]
    """The likeliest ids of each row, likeliest first; empty when none were asked for."""
    top_logprobs: list[list[float]]


def sample(logits_BV: torch.Tensor, rules: SamplingRules) -> DrawnTokens:
    """Draw a token for every row, and overwrite ``logits_BV``. One copy from the device, two with alternatives.

    A row whose logits are not finite gets a NaN logprob.
    """
    scaled_BV = logits_BV.float()
    if rules.changes is not None:
        rules.changes.apply(scaled_BV)
    scaled_BV.sub_(scaled_BV.amax(dim=-1, keepdim=True)).div_(rules.temperature_B1)
    mass_BW = _masses(scaled_BV)
    log_total_B1 = _total(mass_BW).log_()
    if rules.greedy.all():
        ids_B1 = scaled_BV.argmax(dim=-1, keepdim=True)
    else:
        ids_B1 = _invert(_restricted(mass_BW, rules), rules.uniform_B1)
        if rules.greedy.any():
            greedy_B1 = torch.from_numpy(rules.greedy).to(logits_BV.device)[:, None]
            ids_B1 = torch.where(greedy_B1, scaled_BV.argmax(dim=-1, keepdim=True), ids_B1)
    logprobs_B1 = scaled_BV.gather(1, ids_B1) - log_total_B1

    ids, logprobs = torch.cat([ids_B1, logprobs_B1.double()], dim=1).T.tolist()
    top_ids, top_logprobs = _likeliest(scaled_BV - log_total_B1, rules.top_logprobs) if rules.top_logprobs else ([], [])
    return DrawnTokens([int(index) for index in ids], logprobs, top_ids, top_logprobs)


def _masses(scaled_BV: torch.Tensor) -> torch.Tensor:
    """``exp`` of the logits, for a large vocabulary with zeros up to a whole number of blocks: ``[B, W]``."""
    rows, vocabulary = scaled_BV.shape
    if vocabulary <= _LARGE:
        return scaled_BV.exp()
    mass_BW = scaled_BV.new_empty(rows, -(-vocabulary // _BLOCK) * _BLOCK)
    torch.exp(scaled_BV, out=mass_BW[:, :vocabulary])
    mass_BW[:, vocabulary:] = 0
    return mass_BW


def _total(mass_BW: torch.Tensor) -> torch.Tensor:
    """The sum of each row, ``[B, 1]``. By blocks where there are some: threads would share one long row among them,
    which adds up in another order than a row of several."""
    if mass_BW.shape[1] <= _LARGE:
        return mass_BW.sum(dim=-1, keepdim=True)
    return mass_BW.view(len(mass_BW), -1, _BLOCK).sum(dim=-1).sum(dim=-1, keepdim=True)


def _invert(mass_BW: torch.Tensor, uniform_B1: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative mass exceeds ``uniform`` of the whole, so never one without mass.

    In a large vocabulary the sums of blocks are searched first, then one block: a cumulative sum over the whole
    vocabulary is the costliest part of sampling, and loses precision with its length.
    """
    if mass_BW.shape[1] <= _LARGE:
        cumulative_BW = mass_BW.cumsum(dim=-1)
        ids_B1 = _first_above(cumulative_BW, uniform_B1 * cumulative_BW[:, -1:])
    else:
        ids_B1 = _invert_blocks(mass_BW.view(len(mass_BW), -1, _BLOCK), uniform_B1)
    if mass_BW.is_cuda:
        # A parallel sum need not rise monotonically: a token without mass may be hit, and is passed over.
        ids_B1 = torch.where(mass_BW.gather(1, ids_B1) > 0, ids_B1, mass_BW.argmax(dim=-1, keepdim=True))
    return ids_B1


def _invert_blocks(mass_BKN: torch.Tensor, uniform_B1: torch.Tensor) -> torch.Tensor:
    sums_BK = mass_BKN.sum(dim=-1)
    cumulative_BK = sums_BK.cumsum(dim=-1)
    target_B1 = uniform_B1 * cumulative_BK[:, -1:]
    block_B1 = _first_above(cumulative_BK, target_B1)
    before_B1 = (cumulative_BK - sums_BK).gather(1, block_B1)
    block_BN = mass_BKN[torch.arange(len(mass_BKN), device=mass_BKN.device), block_B1[:, 0]]
    return block_B1 * _BLOCK + _first_above(block_BN.cumsum(dim=-1), target_B1 - before_B1)


def _first_above(cumulative_BK: torch.Tensor, target_B1: torch.Tensor) -> torch.Tensor:
    """Where a cumulative sum first exceeds ``target``, which rounding may have brought below 0 or up to the total."""
    total_B1 = cumulative_BK[:, -1:]
    highest_B1 = total_B1.nextafter(torch.zeros_like(total_B1))
    inside_B1 = torch.minimum(target_B1, highest_B1).clamp_(min=0)
    return torch.searchsorted(cumulative_BK, inside_B1, right=True).clamp_(max=cumulative_BK.shape[1] - 1)


def _restricted(mass_BW: torch.Tensor, rules: SamplingRules) -> torch.Tensor:
    """The mass with zeros where ``top_k``, and then ``top_p`` of the rest, cut tokens off."""
    cut = np.flatnonzero((rules.top_p < 1) | (rules.top_k > 0))
    if not len(cut):
        return mass_BW
    width = mass_BW.shape[1]
    rows = torch.from_numpy(cut).to(mass_BW.device)
    keep = np.where(rules.top_k[cut] > 0, rules.top_k[cut], width)
    top_k = torch.from_numpy(keep).to(mass_BW.device)[:, None]
    # At 1 nothing may be cut, not even what rounding puts beyond the total.
    share = np.where(rules.top_p[cut] < 1, rules.top_p[cut], np.inf)
    top_p = torch.from_numpy(share).to(mass_BW.device, torch.float32)[:, None]

    sorted_mass, order = mass_BW[rows].sort(dim=-1, descending=True, stable=True)
    sorted_mass = sorted_mass.masked_fill_(torch.arange(width, device=rows.device) >= top_k, 0.0)
    before = sorted_mass.cumsum(dim=-1) - sorted_mass
    # The likeliest token always stays: nothing lies before it.
    sorted_mass.masked_fill_(before >= top_p * _total(sorted_mass), 0.0)
    kept = torch.zeros_like(sorted_mass).scatter_(1, order, sorted_mass)
    return mass_BW.index_copy(0, rows, kept)


def _likeliest(logprobs_BV: torch.Tensor, count: int) -> tuple[list[list[int]], list[list[float]]]:
    """The ids and logprobs of the ``count`` likeliest tokens of each row, of equal ones the lowest id first.

    Which of equal ones ``topk`` takes depends on how many are wanted, so that a row's answer would depend on what
    others want; hence each is made unique by its id.
    """
    bits_BV = logprobs_BV.contiguous().view(torch.int32).long()
    # In the order of the numbers: of negative ones, larger bits are a smaller number.
    ordered_BV = torch.where(bits_BV < 0, -(bits_BV & 0x7FFF_FFFF), bits_BV)
    unique_BV = (ordered_BV << 32) - torch.arange(logprobs_BV.shape[1], device=logprobs_BV.device)
    indices = unique_BV.topk(min(count, logprobs_BV.shape[1]), dim=-1).indices
    rows = torch.cat([indices, logprobs_BV.gather(1, indices).double()], dim=1).tolist()
    half = indices.shape[1]
    return [[int(index) for index in row[:half]] for row in rows], [row[half:] for row in rows]


class TextDecoder(Protocol):
    """The part of a Hugging Face tokenizer that turns ids into text."""

    def decode(self, token_ids: list[int], **kwargs: bool) -> str:
        """Returns the text of ``token_ids``."""
        ...


class StopStrings:
    """Finds stop strings in the text of one generation as its tokens come, also across tokens."""

    def __init__(self, tokenizer: TextDecoder, strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._strings = strings
        # A token is at least one byte of text, so this many hold any string that the newest one completes;
        # the rest makes up for a character that the window's first token may cut.
        self._window = max(len(string.encode()) for string in strings) + 8

    def found(self, ids: Sequence[int]) -> str | None:
        """Returns the stop string that comes first in the text of ``ids``, or ``None`` where it holds none.

        Call it after every token: only a string that ends in the last id is looked for.
        """
        if self._first(self._decode(ids[-self._window :])) is None:
            return None
        return self._first(self._decode(ids))

    def _first(self, text: str) -> str | None:
        starts = [(text.find(string), string) for string in self._strings if string in text]
        return min(starts)[1] if starts else None

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
