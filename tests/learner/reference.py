"""The objective computed the plain way, to hold the learner against: every completion a row of its own.

Nothing here knows of paths, tries, bins or positions. Each sampled span is read from its token tree with the
history before it and goes through the model's own forward alone; the parts of the algorithm are asked as
their contracts say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentrl.algorithms.contract import Algorithm, ByCall, ComparedGroup, Membership, StepAdvantage
from agentrl.learner.attention import NAME
from agentrl.learner.contract import CorrectionTerms, ObjectiveTerms, PenaltyTerms
from agentrl.learner.gradient import accumulate_gradient
from agentrl.learner.packing import pack
from agentrl.learner.policy import Policy
from agentrl.rollout.contract import Episode, Group
from agentrl.tokens.contract import Position, TokenTree
from agentrl.training.columns import Columns, Scored

Gradient = dict[str, Tensor]


class Row(NamedTuple):
    """One completion with its history."""

    ids: list[int]
    completion: int
    behaviour: tuple[float, ...]
    versions: tuple[int, ...]
    temperature: float
    advantage: float
    episode: int


def plain_rows(groups: Sequence[Group], algorithm: Algorithm) -> list[Row]:
    """Every completion that is to be trained, in the order of episodes and spans."""
    made: list[Row] = []
    for number, (episode, by_call) in enumerate(_trained(groups, algorithm)):
        for index, span in enumerate(episode.tree.spans):
            by = span.sampled
            if by is not None and by.call in by_call and not by.constrained:
                ids, advantage = episode.tree.path(Position(index, len(span.ids))), by_call[by.call]
                made.append(Row(ids, len(span.ids), by.logprobs, by.versions, by.temperature, advantage, number))
    return made


def _trained(groups: Sequence[Group], algorithm: Algorithm) -> list[tuple[Episode, ByCall]]:
    """The episodes that the filters let through, with the advantages of their calls."""
    returns = []
    for group in groups:
        rewarded = [episode for episode in group.episodes if episode.outcome == "rewarded"]
        for shaping in algorithm.shaping:
            rewarded = [shaping(episode) for episode in rewarded]
        returns.append([algorithm.credit(episode) for episode in rewarded])
    advantage = algorithm.advantage
    advantages = [advantage(each) for each in returns]
    if isinstance(advantage, StepAdvantage):
        advantages = advantage.of_step(returns)
    compared = [
        ComparedGroup(group, earned, made, any(value for by_call in made for value in by_call.values()))
        for group, earned, made in zip(groups, returns, advantages, strict=True)
    ]
    answers = [part(compared) for part in algorithm.filter]
    kept: list[tuple[Episode, ByCall]] = []
    for at, group in enumerate(compared):
        for number, (episode, by_call) in enumerate(zip(group.episodes, group.advantages, strict=True)):
            if all(each[at] if isinstance(each[at], bool) else each[at][number] for each in answers):
                kept.append((episode, by_call))
    return kept


def reference_gradient(
    model: PreTrainedModel,
    groups: Sequence[Group],
    algorithm: Algorithm,
    reference: PreTrainedModel | None = None,
    version: int = 0,
) -> tuple[float, Gradient]:
    """Loss and gradient of ``algorithm`` over ``groups`` by plain forwards of ``model``.

    ``reference`` is the other model that the algorithm needs, if any: its reference or its teacher.
    """
    table = plain_rows(groups, algorithm)
    lengths = [row.completion for row in table]
    membership = Membership(
        np.repeat([row.episode for row in table], lengths), np.repeat(np.arange(len(table)), lengths)
    )
    weights = np.split(algorithm.normalisation(membership), np.cumsum(lengths)[:-1])
    _attend_plainly(model)
    model.zero_grad()
    total = 0.0
    for call, (row, weight) in enumerate(zip(table, weights, strict=True)):
        loss = _row_loss(model, algorithm, row, call, torch.from_numpy(weight), reference, version)
        loss.backward()
        total += float(loss.detach())
    return total, _gradient(model)


def _row_loss(
    model: PreTrainedModel,
    algorithm: Algorithm,
    row: Row,
    call: int,
    weight: Tensor,
    reference: PreTrainedModel | None = None,
    version: int = 0,
) -> Tensor:
    logprobs, sampled = _row_logprobs(model, row), torch.tensor(row.ids[-row.completion :])
    logprob = logprobs.gather(1, sampled[:, None])[:, 0]
    behaviour = torch.tensor(row.behaviour, dtype=logprob.dtype)
    calls = torch.full_like(sampled, call)
    age = version - torch.tensor(row.versions, dtype=logprob.dtype)
    anchor = algorithm.correction(CorrectionTerms(logprob.detach(), behaviour, age, calls))
    advantage = torch.full_like(behaviour, row.advantage)
    extra = {}
    if reference is not None:
        _attend_plainly(reference)
        extra["reference"] = _row_logprobs(reference, row).detach().gather(1, sampled[:, None])[:, 0]
    if "teacher" in algorithm.columns:
        advantage = (extra["reference"] - behaviour).clamp(-20, 20)
    terms = ObjectiveTerms(logprob, anchor.logprob, advantage, calls, behaviour)
    loss = algorithm.objective(terms).loss * anchor.weight
    for penalty in algorithm.penalties:
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        loss = loss + penalty.coefficient * penalty(PenaltyTerms(logprob, entropy, behaviour, extra))
    return (loss * weight.to(logprob)).sum()


def _row_logprobs(model: PreTrainedModel, row: Row) -> Tensor:
    """Of the whole vocabulary, at each position that predicts a token of the completion."""
    logits = model(input_ids=torch.tensor([row.ids])).logits[0, -row.completion - 1 : -1]
    return torch.log_softmax(logits / row.temperature, dim=-1)


def forest_gradient(
    model: PreTrainedModel,
    groups: Sequence[Group],
    algorithm: Algorithm,
    tokens_per_batch: int = 8192,
    reference: PreTrainedModel | None = None,
    version: int = 0,
) -> tuple[float, Gradient]:
    """The same by the learner's own code over the forest; the models have been switched to forest attention."""
    return _learner_gradient(
        model, groups, algorithm, tokens_per_batch, forest=True, reference=reference, version=version
    )


def rows_gradient(
    model: PreTrainedModel, groups: Sequence[Group], algorithm: Algorithm, tokens_per_batch: int = 8192
) -> tuple[float, Gradient]:
    """The same by the learner's own code over padded rows."""
    _attend_plainly(model)
    return _learner_gradient(model, groups, algorithm, tokens_per_batch, forest=False)


def _attend_plainly(model: PreTrainedModel) -> None:
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation("sdpa")


def _learner_gradient(model, groups, algorithm, tokens_per_batch, *, forest, reference=None, version=0):

    def score(batch):
        return Scored(Policy(reference).score_paths(batch.targets, batch.paths, tokens_per_batch).logprob)

    scorers = {} if reference is None else dict.fromkeys(algorithm.columns, score)
    batch = Columns(algorithm, scorers).prepare(groups).batch
    passes = pack(batch.paths, batch.targets, tokens_per_batch, forest=forest)
    model.zero_grad()
    metrics = accumulate_gradient(Policy(model), batch, passes, algorithm.loss, version=version).metrics
    return metrics["policy/loss"], _gradient(model)


@torch.no_grad()
def sampled_by(model: PreTrainedModel, groups: Sequence[Group]) -> list[Group]:
    """The same episodes with the logprobs that ``model`` gives their completions, each at its own temperature."""

    def scored(tree: TokenTree) -> TokenTree:
        made = TokenTree()
        for index, span in enumerate(tree.spans):
            sampled = span.sampled
            if sampled is not None:
                ids = torch.tensor([tree.path(Position(index, len(span.ids)))])
                logits = model(input_ids=ids).logits[0, -len(span.ids) - 1 : -1] / sampled.temperature
                logprobs = torch.log_softmax(logits, dim=-1).gather(1, ids[0, -len(span.ids) :, None])
                sampled = replace(sampled, logprobs=tuple(logprobs[:, 0].tolist()))
            made._add(replace(span, sampled=sampled))
        return made

    return [
        replace(group, episodes=tuple(replace(episode, tree=scored(episode.tree)) for episode in group.episodes))
        for group in groups
    ]


def _gradient(model: PreTrainedModel) -> Gradient:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def relative_difference(left: Gradient, right: Gradient) -> float:
    """The greatest relative difference of any parameter's gradient, against its own norm."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).norm() / right[name].norm()) for name in left)
