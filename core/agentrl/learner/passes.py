"""A pass: what one forward of the model computes, whichever way the batch was laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.errors import RunError

if TYPE_CHECKING:
    from agentrl.algorithms.contract import Ints

__all__ = ["Pass", "check_lengths"]


@dataclass(frozen=True, slots=True)
class Pass:
    """Positions of one forward pass, and the loss terms that it computes."""

    ids: Ints
    """Shape (rows, length); a forest is one row."""
    depth: Ints
    """Shape (rows, length). Position id: how many tokens come before it on its path."""
    terms: Ints
    """Which loss terms of the batch are computed here."""
    row: Ints
    """For each of those, the row of the position whose logits predict its token."""
    position: Ints
    """For each of those, that position in its row."""
    subtree_end: Ints | None = None
    """Shape (length,), of a forest: the first later position that does not descend from each. ``None`` for plain
    rows, in which every position attends to all before it."""


def check_lengths(lengths: Sequence[int], tokens_per_batch: int, episodes: Sequence[object] = ()) -> None:
    """Raise ``RunError`` where a single path does not fit a pass; ``episodes`` says which episode each is of."""
    longest = max(lengths, default=0)
    if longest > tokens_per_batch:
        whose = f"episode {episodes[lengths.index(longest)]}" if episodes else "an episode"
        raise RunError(
            f"{whose} has a context of {longest} tokens, which does not fit "
            f"training.tokens_per_batch={tokens_per_batch}",
            fix=f"set training.tokens_per_batch to {longest} or more, or bound the agent's turns and tokens",
        )
