"""What a step made of tokens is stored as it was, beside the episode, and is found by it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runs.test_store import make_episode

from agentrl.errors import RunError
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.runs.contract import TokenFate, TrainedEpisode, TrainedTokens
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.store import EpisodeStore
from agentrl.runs.trained import FATES, row_of, rows_of, trained_row, trained_tokens
from agentrl.tokens.contract import Sampled, TokenTree

VALUES = st.just(math.nan) | st.floats() | st.floats(width=32) | st.sampled_from([0.0, -0.0, 0.1])


@st.composite
def several(draw: st.DrawFn) -> TrainedTokens:
    count = draw(st.integers(0, 6))
    columns = [draw(st.lists(VALUES, min_size=count, max_size=count)) for _ in range(5)]
    if draw(st.booleans()):
        columns[0] = [draw(VALUES)] * count
    fates = draw(st.lists(st.sampled_from(get_args(TokenFate)), min_size=count, max_size=count))
    return TrainedTokens(draw(st.integers(1, 10**9)), tuple(fates), *map(tuple, columns))


def spelled(tokens: TrainedTokens | None) -> str:
    """All values in full: a NaN is equal to nothing."""
    return repr(tokens)


@settings(max_examples=200)
@given(several())
def test_tokens_survive_their_row(tokens: TrainedTokens) -> None:
    assert spelled(trained_tokens(trained_row(tokens))) == spelled(tokens)


@settings(max_examples=100)
@given(st.lists(several(), max_size=4))
def test_rows_of_arrays_are_those_of_the_tokens_one_by_one(tokens: list[TrainedTokens]) -> None:
    episodes = [
        TrainedEpisode(EpisodeKey("train", number, 0, 0), "trained", replace(each, step=1))
        for number, each in enumerate(tokens)
    ]
    fates = np.array([FATES.index(fate) for each in tokens for fate in each.fates], dtype=np.uint8)
    names = ("advantages", "weights", "logprobs", "entropies", "importances")
    columns = [np.array([value for each in tokens for value in getattr(each, name)], dtype=float) for name in names]
    lengths = [len(each.fates) for each in tokens]
    made = list(rows_of(1, [(each.key, each.fate) for each in episodes], lengths, fates, columns))
    expected = [row_of(each) for each in episodes]
    for one, other in zip(made, expected, strict=True):
        assert spelled(trained_tokens(one.columns)) == spelled(trained_tokens(other.columns))
        assert one._replace(columns=(), advantage=None) == other._replace(columns=(), advantage=None)
        assert (one.advantage is None) == (other.advantage is None)
        if other.advantage is not None and math.isfinite(other.advantage):
            most = max(map(abs, tokens[one.key.group].advantages))
            assert math.isclose(one.advantage, other.advantage, rel_tol=0, abs_tol=1e-9 * most)


def test_equal_values_take_no_room() -> None:
    def size(*advantages: float) -> int:
        many = advantages * (300 // len(advantages))
        row = trained_row(TrainedTokens(1, ("trained",) * 300, many, *((math.nan,) * 300,) * 4))
        return sum(len(column or b"") for column in row[2:])

    assert (size(0.1), size(math.nan), size(0.25, 0.5), size(0.1, 0.2)) == (8, 0, 1200, 2400)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EpisodeStore]:
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        yield store


def sampled(group: int, sample: int, *logprobs: float, **fields: object) -> Episode:
    tree = TokenTree()
    count = len(logprobs)
    if count:
        tree.add_sampled(range(count), Sampled("c", logprobs, (0,) * count, 1.0), tree.add_given([7]))
    return replace(make_episode(group, sample=sample), tree=tree, **fields)  # type: ignore[arg-type]


def made(episode: Episode, *advantages: float, fate: str = "trained", step: int = 1) -> TrainedEpisode:
    fates = tuple("unrewarded" if math.isnan(advantage) else "trained" for advantage in advantages)
    nan = (math.nan,) * len(advantages)
    tokens = TrainedTokens(step, fates, advantages, nan, nan, nan, nan)  # type: ignore[arg-type]
    return TrainedEpisode(episode.key, fate, tokens)  # type: ignore[arg-type]


def test_a_step_leaves_its_tokens_and_the_fate_of_the_episode(store: EpisodeStore) -> None:
    first, second, third = (sampled(0, sample, -0.5, -1.5, -4.0) for sample in range(3))
    store.submit([first, second, third]).result()
    store.record_training(1, [made(first, 1.0, math.nan, 2.0), made(second, *[math.nan] * 3, fate="stale")]).result()
    reader = EpisodeReader(store.path)
    assert [(row.fate, row.advantage, row.surprise) for row in reader.rows()] == [
        ("trained", 1.5, 2.0),
        ("stale", None, 2.0),
        (None, None, 2.0),
    ]
    assert spelled(reader.trained(first.key)) == spelled(made(first, 1.0, math.nan, 2.0).tokens)
    assert reader.trained(third.key) is None
    assert reader.counts("fate") == {"stale": 1, "trained": 1}
    assert [row.key.sample for row in reader.rows(fate="stale")] == [1]
    assert reader.row(str(first.key)).advantage == 1.5


def test_a_step_that_is_repeated_replaces_what_it_left(store: EpisodeStore) -> None:
    episode = sampled(0, 0, -0.5)
    store.submit([episode]).result()
    for advantage in (1.0, 3.0):
        store.record_training(1, [made(episode, advantage)]).result()
    reader = EpisodeReader(store.path)
    assert reader.row(episode.key).advantage == 3.0
    assert reader.trained(episode.key).advantages == (3.0,)  # type: ignore[union-attr]


def test_more_episodes_than_one_statement_takes(store: EpisodeStore) -> None:
    episodes = [sampled(group, sample, -1.0) for group in range(40) for sample in range(8)]
    store.submit(episodes).result()
    store.record_training(1, [made(episode, float(number)) for number, episode in enumerate(episodes)]).result()
    assert [row.advantage for row in EpisodeReader(store.path).rows()] == list(map(float, range(320)))


def test_what_does_not_fit_the_stored_episode_is_refused(store: EpisodeStore) -> None:
    episode = sampled(0, 0, -0.5)
    store.submit([episode]).result()
    with pytest.raises(RunError, match=r"step 1 tells of 2 tokens of episode train-0-0-0, which has 1"):
        store.record_training(1, [made(episode, 1.0, 2.0)]).result()
    with pytest.raises(RunError, match=r"step 1 trained episode train-5-0-0, which is not in"):
        store.record_training(1, [made(sampled(5, 0), 1.0)]).result()
    with pytest.raises(ValueError, match=r"has tokens of step 1, not of 2"):
        store.record_training(2, [made(episode, 1.0)])
    with pytest.raises(ValueError, match=r"1 entropies for 2 sampled tokens"):
        TrainedTokens(1, ("trained",) * 2, (0.0,) * 2, (0.0,) * 2, (0.0,) * 2, (0.0,), (0.0,) * 2)
    assert EpisodeReader(store.path).trained(episode.key) is None


def call(*tools: str, **fields: float) -> Call:
    made = [{"id": str(at), "type": "function", "function": {"name": name}} for at, name in enumerate(tools)]
    return Call("c", None, {}, {"content": None, "tool_calls": made}, "tool_calls", 1, 1, **fields)


def test_episodes_are_found_by_the_tools_that_the_policy_called(store: EpisodeStore) -> None:
    used = [("search", "open", "search"), (), ("open",), ("half \ud800",)]
    store.submit([sampled(0, at, -1.0, calls=(call(*tools), call(*tools))) for at, tools in enumerate(used)]).result()
    reader = EpisodeReader(store.path)
    assert reader.counts("tool") == {"half \ud800": 1, "open": 2, "search": 1}
    assert [row.key.sample for row in reader.rows(tool="open")] == [0, 2]
    assert [row.key.sample for row in reader.rows(tool="half \ud800")] == [3]
    assert reader.count(tool="ope") == 0


def test_times_and_alternatives_are_stored(store: EpisodeStore) -> None:
    tree = TokenTree()
    pairs = (((4, -0.25), (5, -2.0)), ((6, -0.1),))
    end = tree.add_sampled([4, 6], Sampled("c", (-0.25, -0.1), (0, 0), 1.0, alternatives=pairs), tree.add_given([1]))
    tree.add_sampled([4], Sampled("d", (-0.25,), (0,), 1.0), end)
    episode = replace(make_episode(0), tree=tree, calls=(call(started=1.5, waited=0.25), call()), started=1e9)
    store.submit([episode]).result()
    read = EpisodeReader(store.path).episode(episode.key)
    assert (read, read.started) == (episode, 1e9)
    assert EpisodeReader(store.path).row(episode.key).started == 1e9
