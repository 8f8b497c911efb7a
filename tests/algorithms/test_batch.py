"""From groups to paths and loss terms: each trained token once, and nothing that no token needs."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import Recorder, chain, wander, wandering_groups

from agentrl.algorithms.batch import build_batch, cover, wholly_excluded
from agentrl.inference.contract import Grammar
from agentrl.rollout.contract import Group
from agentrl.tokens.contract import Position, TokenTree

GRPO = grpo()


def sampled_spans(tree):
    return [index for index, span in enumerate(tree.spans) if span.sampled is not None]


def recorder(seed=0):
    return Recorder(random.Random(seed), 5)


@given(st.integers(0, 10_000), st.data())
def test_each_span_lies_once_on_a_path_with_its_own_history(seed, data):
    tree = wander(recorder(seed), [1, 2], calls=6).tree
    trained = [span for span in sampled_spans(tree) if data.draw(st.booleans())]
    found = []
    for path in cover(tree, trained):
        for span, start in path.spans:
            history = tree.path(Position(span, len(tree.spans[span].ids) - 1))
            assert path.ids[: len(history)].tolist() == history
            assert start == len(history) - len(tree.spans[span].ids) + 1
            found.append(span)
    assert sorted(found) == sorted(trained)


def test_a_conversation_is_one_path_without_its_last_token():
    tree = chain(recorder(), [1, 2, 3], turns=4).tree
    (path,) = cover(tree, sampled_spans(tree))
    last = sampled_spans(tree)[-1]
    assert path.ids.tolist() == tree.path(Position(last, len(tree.spans[last].ids)))[:-1]
    assert len(path.spans) == 4


def test_given_tokens_that_no_trained_token_follows_are_left_out():
    made = recorder()
    first = made.call([1, 2, 3], [4, 4])
    made.call([0, 0, 0, 0], [1, 1], after=first)
    (path,) = cover(made.tree, sampled_spans(made.tree)[:1])
    assert path.ids.tolist() == [1, 2, 3, 4]


def test_only_rewarded_episodes_have_terms():
    kept, rejected = recorder(1), recorder(2)
    kept.call([1, 2], [3, 3, 3])
    rejected.call([1, 2], [4, 4])
    batch, _ = build_batch([Group(0, (kept.episode(1.0), rejected.episode(None)))], GRPO)
    assert batch.targets.token.tolist() == [3, 3, 3]


def test_what_a_grammar_or_greedy_sampling_chose_is_history_but_not_trained():
    made = recorder()
    first = made.call([1, 2], [3, 3], constrained=True)
    second = made.call([1], [4, 4, 4], after=first, temperature=0.0)
    made.call([1], [2], after=second)
    batch, account = build_batch([Group(0, (made.episode(1.0),))], GRPO)
    assert batch.targets.token.tolist() == [2]
    assert account.counts["tokens/excluded"] == 5
    assert batch.paths[0].tolist() == [1, 2, 3, 3, 1, 4, 4, 4, 1]


class Allowed:
    """What each position of a completion allowed, by the text of its grammar, in a vocabulary of ``vocabulary`` ids."""

    def __init__(self, vocabulary=12, known=12, **by_text):
        self.vocabulary = vocabulary
        self.everything = packed([range(known)])[0]
        self.by_text = by_text

    def masks(self, grammar, stop_ids, ids):
        rows = self.by_text.get(grammar.text)
        return None if rows is None else packed([set(row) | {token} for row, token in zip(rows, ids, strict=True)])


def packed(sets):
    rows = np.zeros((len(sets), 16), bool)
    for row, allowed in zip(rows, sets, strict=True):
        row[list(allowed)] = True
    return np.packbits(rows, axis=1, bitorder="little")


def under(text):
    return {"constrained": True, "grammar": Grammar("regex", text), "stop_ids": (9,)}


ALL = range(12)


def test_tokens_at_which_a_grammar_forbade_nothing_are_trained():
    """As those are that come before a call of a strict tool."""
    made = recorder()
    call = made.call([1, 2], [3, 4, 5, 6], **under("mixed"))
    made.call([1], [7, 8], after=call)
    groups = [Group(0, (made.episode(1.0),))]
    batch, account = build_batch(groups, GRPO, allowed=Allowed(mixed=[ALL, [], [2], ALL]))
    assert batch.targets.token.tolist() == [7, 8, 3, 6]  # The last turn of a path comes first.
    assert batch.targets.depth.tolist() == [6, 7, 1, 4]
    assert batch.call.tolist() == [0, 0, 1, 1]
    assert batch.targets.masks is None
    assert account.counts["tokens/excluded"] == 2
    assert batch.paths[0].tolist() == [1, 2, 3, 4, 5, 6, 1, 7]
    before, after = (span.sampled.logprobs for span in made.tree.spans if span.sampled)
    assert batch.logprob.tolist() == [*after, before[0], before[3]]


def test_what_no_grammar_can_allow_is_left_out_of_the_distribution_of_free_tokens():
    made = recorder()
    made.call([1, 2], [3, 4], **under("free"))
    batch, _ = build_batch([Group(0, (made.episode(1.0),))], GRPO, allowed=Allowed(13, 12, free=[ALL, [0]]))
    assert batch.targets.token.tolist() == [3]
    assert batch.targets.masks.tolist() == packed([ALL]).tolist()
    assert batch.targets.mask.tolist() == [0]


def test_with_choices_tokens_are_trained_that_were_chosen_from_several():
    made = recorder()
    call = made.call([1, 2], [3, 4, 5, 6, 7], **under("mixed"))
    made.call([1], [8], after=call)
    allowed = Allowed(mixed=[ALL, [], [2], [1], [2, 5]])
    batch, account = build_batch([Group(0, (made.episode(1.0),))], GRPO, allowed=allowed, choices=True)
    assert batch.targets.token.tolist() == [8, 3, 5, 6, 7]
    assert account.counts["tokens/excluded"] == 1
    found = [batch.targets.masks[row].tolist() for row in batch.targets.mask[1:]]
    assert found == packed([ALL, [2, 5], [1, 6], [2, 5, 7]]).tolist()
    assert batch.targets.mask[0] == -1


def test_a_call_whose_masks_are_not_known_is_excluded_whole():
    made = recorder()
    made.call([1, 2], [3, 4], **under("unknown"))
    made.call([2], [5], constrained=True)
    made.call([3], [6])
    batch, account = build_batch([Group(0, (made.episode(1.0),))], GRPO, allowed=Allowed(), choices=True)
    assert batch.targets.token.tolist() == [6]
    assert account.counts["tokens/excluded"] == 3


def test_an_episode_without_a_token_to_train_is_found():
    trained, left_out, rejected = recorder(1), recorder(2), recorder(3)
    trained.call([1, 2], [3, 4], **under("mixed"))
    for made in (left_out, rejected):
        made.call([1, 2], [3, 4], **under("forced"))
    allowed = Allowed(mixed=[ALL, [0]], forced=[[5], []])
    groups = [Group(0, (rejected.episode(None, 0), trained.episode(1.0, 1), left_out.episode(0.0, 2)))]
    assert wholly_excluded(groups, allowed=allowed).key.sample == 2
    assert wholly_excluded(groups, allowed=allowed, choices=True) is None
    assert wholly_excluded(groups).key.sample == 1
    assert wholly_excluded([Group(0, (trained.episode(1.0),))], allowed=allowed) is None


@given(st.integers(0, 10_000))
def test_terms_say_what_was_sampled_and_where(seed):
    batch, _ = build_batch(wandering_groups(random.Random(seed), 5), GRPO)
    targets = batch.targets
    for term in range(len(targets.token) - 1):
        if batch.call[term] == batch.call[term + 1]:  # so it is on the path, as what the next one follows
            assert batch.paths[targets.path[term]][targets.depth[term] + 1] == targets.token[term]
            assert targets.path[term] == targets.path[term + 1]
    assert np.isclose(batch.weight.sum(), 1.0) or len(targets.token) == 0
    assert len(batch.labels) == len(batch.paths)


def test_a_path_is_called_after_its_episode():
    made = recorder()
    made.call([1, 2], [3])
    batch, _ = build_batch([Group(0, (made.episode(1.0, sample=4),))], GRPO)
    assert batch.labels == ("episode train-0-0-4",)


def aged(versions, reward, *, turns=1, sample=0, **ways):
    """An episode of ``turns`` calls whose tokens are of ``versions``."""
    made, last = recorder(sample), None
    for _ in range(turns):
        last = made.call([1, 2], [3] * len(versions), after=last, **ways)
    tree = TokenTree()
    for span in made.tree.spans:
        tree._add(span if span.sampled is None else replace(span, sampled=replace(span.sampled, versions=versions)))
    return replace(made.episode(reward, sample), tree=tree)


def test_tokens_older_than_the_bound_are_left_out_and_the_rest_trains_with_its_advantage():
    """Versions rise within an episode whose weights changed while it ran."""
    group = Group(0, (aged((2, 3, 3), 1.0), aged((1, 2, 2), 0.0, sample=1), aged((3, 4, 4), 0.0, sample=2)))
    batch, account = build_batch([group], GRPO, oldest=3)
    whole, _ = build_batch([group], GRPO)
    assert batch.version.tolist() == [3, 3, 3, 4, 4]
    kept = whole.version >= 3
    assert batch.advantage.tolist() == whole.advantage[kept].tolist()
    assert batch.targets.depth.tolist() == whole.targets.depth[kept].tolist()
    assert batch.logprob.tolist() == whole.logprob[kept].tolist()
    assert [path.tolist() for path in batch.paths] == [[1, 2, 3, 3]] * 2  # History is computed, whatever its age.
    assert account.counts["tokens/stale"] == 4
    assert account.fates == (("trained", "stale", "trained"),)
    assert np.isclose(batch.weight.sum(), 1)


def test_old_tokens_under_a_grammar_keep_the_masks_of_the_others():
    made = aged((1, 2, 2), 1.0, **under("free"))
    allowed = Allowed(13, 12, free=[ALL, ALL, [4]])
    batch, account = build_batch([Group(0, (made,))], GRPO, allowed=allowed, choices=True, oldest=2)
    assert batch.targets.depth.tolist() == [2, 3]
    found = [batch.targets.masks[row].tolist() for row in batch.targets.mask]
    assert found == packed([ALL, [3, 4]]).tolist()
    assert account.counts == {
        "groups/zero_variance": 1,
        "groups/filtered": 0,
        "tokens/excluded": 0,
        "tokens/stale": 1,
    }


def test_an_episode_longer_than_a_pass_votes_and_has_no_terms():
    short, long = aged((0, 0), 1.0, turns=2), aged((0, 0), 0.0, turns=3, sample=1)
    assert (short.tree.longest_path(), long.tree.longest_path()) == (7, 11)
    group = Group(0, (short, long))
    batch, account = build_batch([group], GRPO, longest=10)
    assert set(batch.labels) == {"episode train-0-0-0"}
    assert batch.advantage.tolist() == [1.0] * 4
    assert account.fates == (("trained", "over_long"),)
    assert build_batch([group], GRPO, longest=11)[1].fates == (("trained", "trained"),)


def even_and_uneven():
    """A group whose episodes all earned the same, one in which they did not, and an empty one."""
    even, uneven = [], []
    for sample in range(3):
        made = recorder(sample)
        made.call([1, 2], [3, sample])
        even.append(made.episode(0.5, sample))
        uneven.append(made.episode(float(sample), sample, task=1))
    return [Group(0, tuple(even)), Group(1, tuple(uneven)), Group(2, ())]


def test_groups_without_a_difference_are_counted():
    batch, account = build_batch(even_and_uneven(), GRPO)
    assert account.counts["groups/zero_variance"] == 2
    assert account.counts["groups/filtered"] == 0
    assert len(batch.targets.token) == 12


def test_a_filter_leaves_groups_out_of_the_batch_and_of_its_mean():
    groups = even_and_uneven()
    filtered, account = build_batch(groups, grpo(filter="zero_variance"))
    alone, _ = build_batch(groups[1:2], GRPO)
    assert account.counts["groups/zero_variance"] == account.counts["groups/filtered"] == 2
    assert filtered.targets.token.tolist() == alone.targets.token.tolist()
    assert filtered.weight.tolist() == alone.weight.tolist()
    assert filtered.weight.sum() == pytest.approx(1.0)


def test_a_filter_that_keeps_nothing_makes_an_empty_batch():
    batch, account = build_batch(even_and_uneven()[:1], grpo(filter="zero_variance"))
    assert (batch.paths, len(batch.weight), account.counts["groups/filtered"]) == ((), 0, 1)


def test_a_completion_without_a_prompt_cannot_be_trained():
    made = recorder()
    made.call([], [1, 2])
    with pytest.raises(ValueError, match="without a prompt"):
        build_batch([Group(0, (made.episode(1.0),))], GRPO)
