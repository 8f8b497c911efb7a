"""What a step made of the tokens of its episodes, as it is recorded: laid out as the policy sampled them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from agentrl.learner.contract import TermScores
from agentrl.rollout.contract import Fate, Group
from agentrl.runs.trained import TrainedRow, row_left_out, rows_of
from agentrl.training.columns import Prepared

__all__ = ["trained_rows"]


def trained_rows(
    step: int,
    prepared: Prepared,
    terms: TermScores,
    *,
    left_out: Iterable[tuple[Group, Sequence[Fate]]] = (),
    stale: Iterable[Group] = (),
) -> Iterator[TrainedRow]:
    """Yield what ``step`` made of every episode that it consumed.

    ``prepared`` is the batch that it trained, with its groups, and ``terms`` what the learner found of the terms.
    ``left_out`` are the groups that a filter left out before there was a batch, with the fates of their episodes, and
    ``stale`` those that were dropped because they were too old.
    """
    batch, tokens = prepared.batch, prepared.account.tokens
    keys = [episode.key for group in prepared.groups for episode in group.episodes]
    fates = chain.from_iterable(prepared.account.fates)
    columns = (batch.advantage, batch.weight, terms.logprob, terms.entropy, terms.importance)
    lengths = tokens.lengths.tolist()
    yield from rows_of(
        step, list(zip(keys, fates, strict=True)), lengths, tokens.fates, [*map(tokens.laid_out, columns)]
    )
    for group, of_group in left_out:
        for episode, fate in zip(group.episodes, of_group, strict=True):
            yield row_left_out(step, episode, fate)
    for group in stale:
        for episode in group.episodes:
            yield row_left_out(step, episode, episode.fate or "stale")
