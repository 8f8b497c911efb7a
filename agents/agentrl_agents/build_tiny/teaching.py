"""Supervised teaching: cross-entropy on what the policy writes, in batches that share their prefix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from agentrl_agents.build_tiny.recording import Row

__all__ = ["Lesson", "teach"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One stretch of teaching."""

    name: str
    steps: int
    pace: float
    """Peak of the learning rates, a share of the optimisers' own; it rises over 50 steps and falls to a twentieth."""
    well: float
    """Share of what is demonstrated that is done well."""
    rows: Mapping[str, int]
    """Demonstrations of each agent in a step."""

    def rate(self, step: int) -> float:
        """The share of the optimisers' learning rates at one step, counted from 0."""
        return self.pace * min(1.0, (step + 1) / 50) * (0.05 + 0.95 * (1 - step / self.steps))


def teach(model: Qwen3ForCausalLM, lessons: Sequence[Lesson], draw: Callable[[str, float], Row]) -> None:
    """Train ``model`` in place through all ``lessons``; ``draw`` gives a demonstration of an agent done so well."""
    optimizers = _optimizers(model)
    for lesson in lessons:
        for step in range(lesson.steps):
            losses = _accumulate(
                model, [[draw(agent, lesson.well) for _ in range(n)] for agent, n in lesson.rows.items()]
            )
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * lesson.rate(step)
                optimizer.step()
                optimizer.zero_grad()
            if step % 100 == 0 or step == lesson.steps - 1:
                _log.info("%s, step %d: loss %s", lesson.name, step, " ".join(f"{loss:.3f}" for loss in losses))


def _optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, by which addition is learnt in a third of AdamW's steps, and AdamW."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.05),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _accumulate(model: Qwen3ForCausalLM, batches: Sequence[Sequence[Row]]) -> list[float]:
    """Add the gradients of all batches, and return their losses."""
    losses = []
    for rows in batches:
        loss = batch_loss(model, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
    return losses


def batch_loss(model: Qwen3ForCausalLM, rows: Sequence[Row]) -> torch.Tensor:
    """Mean cross-entropy of the taught tokens; the prefix that all rows share is computed once."""
    shared = _shared(rows)
    cache = model.model(torch.tensor([rows[0].ids[:shared]]), use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(rows))
    ids_RT = _padded([row.ids[shared:] for row in rows])
    taught_RT = _padded([row.taught[shared:] for row in rows]).bool()
    hidden_RTH = model.model(ids_RT, past_key_values=cache, use_cache=True).last_hidden_state
    logits = model.lm_head(hidden_RTH[:, :-1][taught_RT[:, 1:]])
    return functional.cross_entropy(logits, ids_RT[:, 1:][taught_RT[:, 1:]])


def _shared(rows: Sequence[Row]) -> int:
    """How many tokens all rows begin with, short of the last one that predicts what is taught."""
    first_taught = min(row.taught.index(True) for row in rows)
    first, last = min(row.ids for row in rows), max(row.ids for row in rows)
    differ = (n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return min(next(differ, len(first)), first_taught - 1)


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """``rows`` as one tensor, filled up with zeros on the right, where nothing attends to them."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
