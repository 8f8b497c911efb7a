"""Drawing one token for every row at once, each by its own rules.

A token is the inverse of its distribution's cumulative sum at one uniform number, which depends on the
request's seed and the token's position alone: what else is in the batch changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Draw", "Rules", "sample", "uniforms"]

_COLDEST = 1e-6
"""Below this a temperature is no number for float32 to divide by."""

_LARGE = 2048
"""A vocabulary beyond this is searched in blocks of ``_BLOCK`` tokens."""

_BLOCK = 128


def uniforms(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each (seed, position): the SplitMix64 sequence of the seed's own hash.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    counters = _mix(seeds) + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Rules:
    """How each of ``B`` rows is sampled."""

    greedy: npt.NDArray[np.bool_]
    top_p: npt.NDArray[np.float64]
    top_k: npt.NDArray[np.int64]
    temperature_B1: torch.Tensor
    """On the device; 1 where greedy."""
    uniform_B1: torch.Tensor
    top_logprobs: int
    """Alternatives to report, the most that any row wants."""

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
    ) -> Rules:
        """From arrays of length ``B``. Made before the forward, whose end a copy to the device would wait for."""
        greedy = temperature == 0
        columns = np.stack([np.where(greedy, 1.0, np.maximum(temperature, _COLDEST)), uniform])
        temperature_B1, uniform_B1 = torch.from_numpy(columns).to(device, torch.float32)[:, :, None]
        return cls(greedy, top_p, top_k, temperature_B1, uniform_B1, top_logprobs)


@dataclass(frozen=True, slots=True)
class Draw:
    """What was drawn, on the host."""

    ids: list[int]
    logprobs: list[float]
    """Of the distribution after temperature (of 1 where greedy), before ``top_p`` and ``top_k``."""
    top_ids: list[list[int]]
    """The likeliest ids of each row, likeliest first; empty when none were asked for."""
    top_logprobs: list[list[float]]


def sample(logits_BV: torch.Tensor, rules: Rules) -> Draw:
    """Draw a token for every row; overwrites ``logits``. One copy from the device, two with alternatives.

    A row whose logits are not all finite where they should be gets a NaN logprob.
    """
    scaled_BV = logits_BV.float()
    scaled_BV.sub_(scaled_BV.amax(dim=-1, keepdim=True)).div_(rules.temperature_B1)
    mass_BW = _masses(scaled_BV)
    log_total_B1 = mass_BW.sum(dim=-1, keepdim=True).log_()
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
    return Draw([int(index) for index in ids], logprobs, top_ids, top_logprobs)


def _masses(scaled_BV: torch.Tensor) -> torch.Tensor:
    """``exp``, for a large vocabulary with zeros up to a whole number of blocks: ``W`` columns."""
    rows, vocabulary = scaled_BV.shape
    if vocabulary <= _LARGE:
        return scaled_BV.exp()
    mass_BW = scaled_BV.new_zeros(rows, -(-vocabulary // _BLOCK) * _BLOCK)
    torch.exp(scaled_BV, out=mass_BW[:, :vocabulary])
    return mass_BW


def _invert(mass_BW: torch.Tensor, uniform_B1: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative mass exceeds ``uniform`` of the whole, so never one without mass.

    In a large vocabulary first among the sums of blocks, then in the block: a cumulative sum over all of
    it is the dearest part of sampling, and the less exact the longer it is.
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


def _restricted(mass_BW: torch.Tensor, rules: Rules) -> torch.Tensor:
    """Mass with what ``top_k``, and then ``top_p`` of the rest, cut off set to zero."""
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
    sorted_mass.masked_fill_(before >= top_p * sorted_mass.sum(dim=-1, keepdim=True), 0.0)
    kept = torch.zeros_like(sorted_mass).scatter_(1, order, sorted_mass)
    return mass_BW.index_copy(0, rows, kept)


def _likeliest(logprobs_BV: torch.Tensor, count: int) -> tuple[list[list[int]], list[list[float]]]:
    """Ids and logprobs of the likeliest tokens of each row."""
    values, indices = logprobs_BV.topk(min(count, logprobs_BV.shape[1]), dim=-1)
    rows = torch.cat([indices, values.double()], dim=1).tolist()
    half = indices.shape[1]
    return [[int(index) for index in row[:half]] for row in rows], [row[half:] for row in rows]
