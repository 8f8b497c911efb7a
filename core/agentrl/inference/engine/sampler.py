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
    """How each of ``B`` rows is sampled; arrays of length ``B`` on the host."""

    temperature: npt.NDArray[np.float64]
    """0 is greedy."""
    top_p: npt.NDArray[np.float64]
    top_k: npt.NDArray[np.int64]
    uniform: npt.NDArray[np.float64]
    top_logprobs: int
    """Alternatives to report, the most that any row wants."""


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
    """Draw a token for every row. One copy from the device, two where alternatives are asked for.

    A row whose logits are not all finite where they should be gets a NaN logprob.
    """
    device = logits_BV.device
    greedy = rules.temperature == 0
    columns = np.stack([np.where(greedy, 1.0, np.maximum(rules.temperature, _COLDEST)), rules.uniform])
    temperature_B1, uniform_B1 = torch.from_numpy(columns).to(device, torch.float32)[:, :, None]

    logits_BV = logits_BV.float()
    best_B1, best_ids_B1 = logits_BV.max(dim=-1, keepdim=True)
    scaled_BV = (logits_BV - best_B1).div_(temperature_B1)
    mass_BV = scaled_BV.exp()
    log_total_B1 = mass_BV.sum(dim=-1, keepdim=True).log_()
    ids_B1 = _invert(_restricted(mass_BV, rules), uniform_B1)
    if greedy.any():
        ids_B1 = torch.where(torch.from_numpy(greedy).to(device)[:, None], best_ids_B1, ids_B1)
    logprobs_B1 = scaled_BV.gather(1, ids_B1) - log_total_B1

    ids, logprobs = torch.cat([ids_B1, logprobs_B1.double()], dim=1).T.tolist()
    top_ids: list[list[int]] = []
    top_logprobs: list[list[float]] = []
    if rules.top_logprobs:
        values, indices = (scaled_BV - log_total_B1).topk(min(rules.top_logprobs, scaled_BV.shape[1]), dim=-1)
        top = torch.cat([indices, values.double()], dim=1).tolist()
        half = indices.shape[1]
        top_ids = [[int(index) for index in row[:half]] for row in top]
        top_logprobs = [row[half:] for row in top]
    return Draw([int(index) for index in ids], logprobs, top_ids, top_logprobs)


def _invert(mass_BV: torch.Tensor, uniform_B1: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative mass exceeds ``uniform`` of the whole, so never one without mass."""
    cumulative_BV = mass_BV.cumsum(dim=-1)
    total_B1 = cumulative_BV[:, -1:]
    # Rounding may bring the product up to the total, which nothing exceeds.
    target_B1 = torch.minimum(uniform_B1 * total_B1, total_B1.nextafter(torch.zeros_like(total_B1)))
    ids_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True).clamp_(max=mass_BV.shape[1] - 1)
    if mass_BV.is_cuda:
        # A parallel sum need not rise monotonically: a token without mass may be hit, and is passed over.
        ids_B1 = torch.where(mass_BV.gather(1, ids_B1) > 0, ids_B1, mass_BV.argmax(dim=-1, keepdim=True))
    return ids_B1


def _restricted(mass_BV: torch.Tensor, rules: Rules) -> torch.Tensor:
    """Mass with what ``top_k``, and then ``top_p`` of the rest, cut off set to zero."""
    cut = np.flatnonzero((rules.top_p < 1) | (rules.top_k > 0))
    if not len(cut):
        return mass_BV
    vocabulary = mass_BV.shape[1]
    rows = torch.from_numpy(cut).to(mass_BV.device)
    keep = np.where(rules.top_k[cut] > 0, rules.top_k[cut], vocabulary)
    top_k = torch.from_numpy(keep).to(mass_BV.device)[:, None]
    # At 1 nothing may be cut, not even what rounding puts beyond the total.
    share = np.where(rules.top_p[cut] < 1, rules.top_p[cut], np.inf)
    top_p = torch.from_numpy(share).to(mass_BV.device, torch.float32)[:, None]

    sorted_mass, order = mass_BV[rows].sort(dim=-1, descending=True, stable=True)
    sorted_mass = sorted_mass.masked_fill_(torch.arange(vocabulary, device=rows.device) >= top_k, 0.0)
    before = sorted_mass.cumsum(dim=-1) - sorted_mass
    # The likeliest token always stays: nothing lies before it.
    sorted_mass.masked_fill_(before >= top_p * sorted_mass.sum(dim=-1, keepdim=True), 0.0)
    kept = torch.zeros_like(sorted_mass).scatter_(1, order, sorted_mass)
    return mass_BV.index_copy(0, rows, kept)
