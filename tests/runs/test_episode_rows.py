"""An episode read back is the episode that was stored, whatever is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.gateway.contract import Call, Replacement
from agentrl.rollout.contract import Episode, EpisodeKey, Failure
from agentrl.runs.encoding import plain, to_rows
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.schema import TREE_COLUMNS
from agentrl.runs.store import EpisodeStore
from agentrl.tokens.contract import ROOT, Sampled, TokenTree

text = st.text(st.characters(), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(text, children, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(text, json_values, max_size=3)
ids = st.integers(0, 2**31 - 1)
logprobs = st.floats(max_value=0, allow_nan=False) | st.floats(max_value=0, width=32, allow_nan=False)


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    tree = TokenTree()
    ends = [ROOT]
    for number in range(draw(st.integers(0, 5))):
        tokens = draw(st.lists(ids, min_size=1, max_size=6))
        at = draw(st.sampled_from(ends))
        if draw(st.booleans()):
            ends.append(tree.add_given(tokens, at))
            continue
        count = len(tokens)
        drawn = draw(st.lists(logprobs, min_size=count, max_size=count))
        versions = draw(st.lists(st.integers(0, 10**6), min_size=count, max_size=count))
        sampled = Sampled(f"call-{number}", tuple(drawn), tuple(versions), draw(st.floats(0, 2)), draw(st.booleans()))
        ends.append(tree.add_sampled(tokens, sampled, at))
    return tree


replacements = st.builds(Replacement, text, st.integers(0, 99), st.integers(0, 10**6), text, text)


@st.composite
def call_chains(draw: st.DrawFn) -> tuple[Call, ...]:
    """Calls that continue one another, with histories that grow, are edited, or have nothing in common."""
    calls: list[Call] = []
    for number in range(draw(st.integers(0, 4))):
        parent = draw(st.none() | st.sampled_from(calls)) if calls else None
        history = list(parent.request.get("messages", [])) if parent else []
        kept = history[: draw(st.integers(0, len(history)))]
        if kept and draw(st.booleans()):  # As the first message of an agent that writes the time into it.
            kept[draw(st.integers(0, len(kept) - 1))] = draw(objects)
        request = draw(objects) | {"messages": kept + draw(st.lists(objects, max_size=2))}
        if parent and draw(st.booleans()):
            request = {**parent.request, **request}
        calls.append(
            Call(
                id=f"call-{number}",
                parent=parent.id if parent else None,
                request=request,
                message=draw(objects),
                finish_reason=draw(text),
                prompt_tokens=draw(st.integers(0, 10**6)),
                completion_tokens=draw(st.integers(0, 10**6)),
                fork_reason=draw(st.none() | text),
                overridden=tuple(draw(st.lists(text, max_size=2))),
                control_tokens=tuple(draw(st.lists(text, max_size=2))),
                normalised=tuple(draw(st.lists(replacements, max_size=2))),
                seconds=draw(st.floats(0, 1e6)),
            )
        )
    return tuple(calls)


episodes = st.builds(
    Episode,
    key=st.builds(
        EpisodeKey,
        st.sampled_from(["train", "eval", "eval-greedy"]),
        st.integers(0, 10**9),
        st.integers(0, 10**9),
        st.integers(0, 10**6),
    ),
    data=objects,
    outcome=st.sampled_from(["rewarded", "rejected", "failed"]),
    reward=st.none() | st.floats(allow_nan=False),
    call_rewards=st.dictionaries(text, st.floats(allow_nan=False), max_size=3),
    reward_parts=st.dictionaries(text, st.floats(allow_nan=False), max_size=3),
    calls=call_chains(),
    tree=trees(),
    answer=json_values,
    failure=st.none() | st.builds(Failure, st.sampled_from(["agent", "backend"]), text),
    seconds=st.floats(0, 1e9),
    attempts=st.integers(1, 9),
    version=st.integers(0, 10**6),
    trained_step=st.none() | st.integers(1, 10**6),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EpisodeStore]:
    with EpisodeStore(tmp_path_factory.mktemp("run") / "episodes.sqlite") as store:
        yield store


def read_back(store: EpisodeStore, episode: Episode) -> Episode:
    store.submit([episode]).result()
    return EpisodeReader(store.path).episode(episode.key)


@settings(max_examples=60)
@given(episodes)
def test_an_episode_survives_its_rows(store: EpisodeStore, episode: Episode) -> None:
    assert read_back(store, episode) == episode


@settings(max_examples=60)
@given(trees())
def test_a_tree_survives_its_arrays_with_working_positions(store: EpisodeStore, tree: TokenTree) -> None:
    again = read_back(store, Episode(EpisodeKey("train", 0, 0, 0), {}, "rewarded", 1.0, tree=tree)).tree
    assert again == tree
    assert [again.walk(span.ids) for span in tree.spans] == [tree.walk(span.ids) for span in tree.spans]


def test_logprobs_that_single_precision_holds_take_half_the_space() -> None:
    def packed(logprob: float) -> bytes:
        tree = TokenTree()
        tree.add_sampled([1] * 100, Sampled("c", (logprob,) * 100, (0,) * 100, 1.0), ROOT)
        row = to_rows(Episode(EpisodeKey("train", 0, 0, 0), {}, "rewarded", 1.0, tree=tree)).tree
        return bytes(dict(zip(TREE_COLUMNS[1:], row, strict=True))["logprobs"])

    assert len(packed(-0.1)) == 800
    assert len(packed(-0.125)) == 400


@pytest.mark.parametrize("begins", ["alike", "with another message each time"])
def test_a_long_conversation_is_stored_once(store: EpisodeStore, begins: str) -> None:
    history: list[dict[str, Any]] = [{"role": "system", "content": ""}]
    calls: list[Call] = []
    for turn in range(50):
        first = {"role": "system", "content": "It is now." if begins == "alike" else f"It is {turn}."}
        history = [first, *history[1:], {"role": "user", "content": f"{turn}" * 500}]
        request = {"messages": history, "tools": [{"name": "t" * 1000}]}
        parent = calls[-1].id if calls else None
        calls.append(Call(f"call-{turn}", parent, request, {"content": "ok"}, "stop", 1, 1))
    episode = Episode(EpisodeKey("train", 0, 0, 0), {}, "rewarded", 1.0, calls=tuple(calls))
    assert len(json.dumps(to_rows(episode).calls)) < 2 * len(json.dumps(history))
    assert read_back(store, episode) == episode


def test_a_cycle_in_an_answer_is_pictured() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    assert plain(cycle) == "[[...]]"


@given(json_values)
def test_plain_json_is_left_alone(value: object) -> None:
    assert plain(value) is value
