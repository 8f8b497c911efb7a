"""The bodies of requests: stored once where they repeat each other, and to the letter as they came."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.gateway import bodies
from agentrl.gateway.bodies import Bodies

alike = st.sampled_from([1, 1.0, True])
values = alike | st.sampled_from([0, False, "1", None, [], {}, "\ud83d", 2**70]) | st.lists(alike, max_size=1)
items = st.dictionaries(st.just("a"), values, max_size=1)
requests = st.fixed_dictionaries(
    {"messages": st.lists(items, max_size=4)}, optional={"n": values, "tools": st.just([1])}
)


@given(st.lists(requests, max_size=8), st.lists(items, max_size=3))
def test_bodies_are_kept_to_the_letter_whatever_python_takes_for_equal(written: list[Any], begin: list[Any]) -> None:
    kept = Bodies()
    for body in written:
        body["messages"] = [*begin, *body["messages"]]
        text = json.dumps(body, sort_keys=True)
        recalled = kept.recall(json.loads(text))
        assert json.dumps(recalled, sort_keys=True) == text
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(bodies, "_LONG", 1)
            assert json.dumps(dict(kept.keep(recalled)), sort_keys=True) == text


@pytest.mark.parametrize("called_with", ["12", 12, True, {"n": [1.5, None]}])
def test_what_is_repeated_is_the_same_object(called_with: Any) -> None:
    kept = Bodies()
    messages = [{"role": "user", "content": [{"type": "tool_use", "input": called_with}, f"{n}"]} for n in range(20)]
    first = kept.keep({"messages": copy.deepcopy(messages[:15])})
    again = kept.recall({"messages": copy.deepcopy(messages)})
    assert [a is b for a, b in zip(again["messages"], first["messages"], strict=False)] == [True] * 15


def test_what_python_alone_takes_for_equal_is_not_repeated() -> None:
    kept = Bodies()
    texts = [{"input": f"{n}"} for n in range(15)]
    first = kept.keep({"messages": [*texts, {"input": 1}, {"input": "b"}]})
    again = kept.recall({"messages": [*copy.deepcopy(texts), {"input": True}, {"input": "b"}]})
    assert [a is b for a, b in zip(again["messages"], first["messages"], strict=False)] == [True] * 15 + [False] * 2


def test_what_follows_a_message_that_is_another_one_each_time_is_kept_once() -> None:
    """As the system prompt of an agent that writes the time into it."""
    kept, messages = Bodies(), [{"role": "user", "content": f"{n}"} for n in range(20)]
    for turn in range(21):
        body = {"messages": [{"role": "system", "content": f"It is {turn}."}, *copy.deepcopy(messages[:turn])]}
        recalled = kept.recall(copy.deepcopy(body))
        assert kept.keep(recalled) == body
    again = kept.keep(body)["messages"]
    assert [one is other for one, other in zip(recalled["messages"][1:], again[1:], strict=True)] == [True] * 20
    assert len(kept._links) == len(messages)
