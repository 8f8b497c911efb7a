"""Sharing: which rank computes which pass of a batch.

All ranks run equally many passes, since each pass puts weights together from all of them: they go through *slots*, in
each of which a rank has one pass or is idle. A slot takes as long as its longest pass. Passes are put into slots in the
order of what they cost, so that those of one slot cost about the same, and the limit of a pass is lowered where that
makes all slots together shorter: one bin of a whole batch would leave every other rank without work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedModel

from agentrl.learner.packing import Idle, Pass, Portion, portions
from agentrl.learner.ranks import Ranks

if TYPE_CHECKING:
    from agentrl.learner.contract import Ints, Targets

__all__ = ["Costs", "share"]

SLOT_TOKENS = 64
"""What putting the weights together for a pass costs, in tokens of its forward and backward."""
SLACK = (1.0, 1.15, 1.4)
"""How much larger than an even share of the tokens limits are that are tried: trees cannot be cut evenly."""
MANY_SLOTS = 8
"""Slots at the given limit from which on nothing is gained by more."""
MOST_SLOTS = 4
"""How many more slots than needed are tried."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a pass costs, up to a constant: the multiplications of its forward."""

    token: float
    """Of a position in the layers, but for attention."""
    pair: float
    """Of a position attending to another, in all layers."""
    predicting: float
    """Of a position that meets the vocabulary."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Costs:
        """Those of ``model``, from its sizes; of experts as if all were used."""
        config = model.config.get_text_config()
        head = config.vocab_size * config.hidden_size
        token = max(head / 8, model.num_parameters() - 2.0 * head)
        width = getattr(config, "num_attention_heads", 1) * (getattr(config, "head_dim", None) or 64)
        return cls(token, 2.0 * width * getattr(config, "num_hidden_layers", 1), head)

    def __call__(self, work: Pass) -> float:
        """What ``work`` costs."""
        predicting = len(np.unique(work.row_N * work.ids_RT.shape[1] + work.position_N))
        pairs = float((work.depth_RT + 1).sum())
        return work.ids_RT.size * self.token + pairs * self.pair + predicting * self.predicting


def share(
    paths: Sequence[Ints],
    targets: Targets,
    tokens_per_batch: int,
    *,
    forest: bool,
    first: Ints | None = None,
    ranks: Ranks,
    costs: Costs,
) -> tuple[list[Pass], list[Pass]]:
    """Return the passes that ``pack`` would make, or smaller ones, and which of them this rank computes.

    The arguments and errors are those of ``pack``. Slots of passes with a gradient come before those without. The first
    list is the same on every rank; the second is as long on every rank, with one of ``Idle`` for each slot in which a
    rank has no pass.
    """
    whole: list[Pass] = []
    own: list[Pass] = []
    for portion in portions(paths, targets, first):
        for slot in _assigned(_slots(portion, tokens_per_batch, forest, ranks.size, costs), ranks.size, costs):
            whole.extend(work for work in slot if work is not None)
            own.append(slot[ranks.rank] or Idle.like(portion.first, forest=forest))
    return whole, own


def _slots(portion: Portion, limit: int, forest: bool, size: int, costs: Costs) -> list[list[Pass]]:
    """The passes of a portion, those that go together in a list of at most ``size``, by the limit that costs least."""
    best: list[list[Pass]] = []
    least = float("inf")
    for each in _limits(portion, limit, forest, size):
        passes = sorted(portion.laid_out(each, forest=forest), key=lambda work: -costs(work))
        slots = [passes[start : start + size] for start in range(0, len(passes), size)]
        taken = sum(costs(slot[0]) + SLOT_TOKENS * costs.token for slot in slots)
        if taken < least:
            best, least = slots, taken
        if len(slots) >= MANY_SLOTS:
            break
    return best


def _limits(portion: Portion, limit: int, forest: bool, size: int) -> Iterator[int]:
    """Limits of a pass to try: the given one, and even shares of the tokens in as many slots as may be worth it."""
    yield limit
    tokens, longest = portion.tokens(forest=forest), portion.longest
    fewest = max(1, -(-tokens // (limit * size)))
    tried = {limit}
    for slots in range(fewest, fewest + MOST_SLOTS):
        for slack in SLACK:
            lowered = max(longest, int(slack * tokens / (slots * size)) + 1)
            if lowered < limit and lowered not in tried:
                tried.add(lowered)
                yield lowered


def _assigned(slots: list[list[Pass]], size: int, costs: Costs) -> Iterator[list[Pass | None]]:
    """For each slot the pass of every rank: the costliest goes to the rank that has had the least."""
    had = np.zeros(size)
    for slot in slots:
        of_rank: list[Pass | None] = [None] * size
        for rank, work in zip(np.argsort(had, kind="stable"), slot, strict=False):
            of_rank[rank] = work
            had[rank] += costs(work)
        yield of_rank
