"""The conversations of an episode, whichever protocol they were held in, each answer of the policy once."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reporting.tracked import TOOL, episode

from agentrl.gateway.contract import Call
from agentrl.reporting.chat import chats
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.training.dialogues import read_dialogues

KEY = EpisodeKey("train", 0, 2, 0)
ASKED = {"role": "user", "content": "2 + 1?"}
CALLED = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 1}'}}
ANSWER = {"role": "assistant", "content": "It is 3."}
EPISODE = episode(KEY)


def call(id: str, parent: str | None, request: dict[str, Any], content: str = "", reason: str = "stop", **said: Any):
    return Call(id, parent, request, {"role": "assistant", "content": content, **said}, reason, 1, 1)


def of(*calls: Call) -> Episode:
    return replace(EPISODE, calls=calls)


def roles(chat: Any) -> list[tuple[str, int]]:
    return [(message["role"], message.get("weight", 1)) for message in chat.messages]


def test_the_thinking_of_the_policy_is_there_though_the_agent_dropped_it() -> None:
    (chat,) = chats(EPISODE)
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert chat.messages[2] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "Use the tool.",
        "tool_calls": [CALLED],
    }
    assert (chat.tools, chat.calls, chat.fault) == ([TOOL], ("r1", "r2"), None)


MESSAGES_API = {
    "system": "Add.",
    "max_tokens": 9,
    "tools": [{"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}],
    "messages": [
        ASKED,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Use the tool.", "signature": "x"},
                {"type": "tool_use", "id": "c1", "name": "add", "input": {"b": 1, "a": 2}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "3"}]},
    ],
}
RESPONSES_API = {
    "instructions": "Add.",
    "tools": [{"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}}],
    "input": [
        ASKED,
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 2, "b": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
    ],
}
STORED_RESPONSES = {
    "previous_response_id": "r1",
    "tools": RESPONSES_API["tools"],
    "input": [RESPONSES_API["input"][-1]],
}


@pytest.mark.parametrize(
    "request_body", [MESSAGES_API, RESPONSES_API, STORED_RESPONSES], ids=["messages", "responses", "stored"]
)
def test_other_protocols_read_alike(request_body: dict[str, Any]) -> None:
    first, second = EPISODE.calls
    if request_body is STORED_RESPONSES:
        first = replace(first, request={"instructions": "Add.", "input": "2 + 1?", "tools": RESPONSES_API["tools"]})
    (chat,) = chats(of(first, replace(second, request=request_body)))
    (expected,) = chats(EPISODE)
    assert chat.messages == expected.messages
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    assert chat.tools == [{"type": "function", "function": function}]
    assert chat.fault is None


def test_each_answer_counts_in_one_conversation_where_the_agent_goes_back() -> None:
    first = call("a", None, {"messages": [ASKED]}, "3")
    again = {"role": "user", "content": "Sure?"}
    other = {"role": "user", "content": "Why?"}
    left = call("b", "a", {"messages": [ASKED, {"role": "assistant", "content": "3"}, again]}, "Yes.")
    right = call("c", "a", {"messages": [ASKED, {"role": "assistant", "content": "3"}, other]}, "Count.")
    one, two = chats(of(first, left, right))
    assert (one.calls, two.calls) == (("b",), ("a", "c"))
    assert roles(one) == [("user", 1), ("assistant", 0), ("user", 1), ("assistant", 1)]
    assert roles(two) == [("user", 1), ("assistant", 1), ("user", 1), ("assistant", 1)]


def test_what_the_policy_did_not_say_is_history() -> None:
    shown = {"role": "assistant", "content": "3"}
    (chat,) = chats(of(call("a", None, {"messages": [ASKED, shown, ASKED]}, "3")))
    assert roles(chat) == [("user", 1), ("assistant", 0), ("user", 1), ("assistant", 1)]


def test_an_answer_that_a_changed_history_left_out_stands_alone() -> None:
    first = call("a", None, {"messages": [ASKED]}, "A long story.")
    second = call("b", "a", {"messages": [{"role": "user", "content": "In short: a story. Go on."}]}, "The end.")
    assert [chat.calls for chat in chats(of(first, second))] == [("a",), ("b",)]


def test_what_was_not_delivered_is_not_told_of() -> None:
    first = call("a", None, {"messages": [ASKED]}, "3")
    assert [chat.calls for chat in chats(of(replace(first, id="lost", delivered=False), first))] == [("a",)]


@pytest.mark.parametrize(
    ("said", "reason", "fault"),
    [
        ({"content": "It is"}, "length", "its answers were cut at their limit of tokens"),
        ({"content": " "}, "stop", "it has an answer that says nothing"),
        (
            {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 2'}}]},
            "tool_calls",
            "it has a tool call whose arguments are no JSON object",
        ),
    ],
)
def test_what_nothing_can_be_learned_from_says_why(said: dict[str, Any], reason: str, fault: str) -> None:
    (chat,) = chats(of(call("a", None, {"messages": [ASKED]}, reason=reason, **{"content": "", **said})))
    assert chat.fault == fault


def test_pictures_are_kept_and_named_as_what_cannot_be_learned_from() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    (chat,) = chats(of(call("a", None, {"messages": [{"role": "user", "content": [picture]}]}, "A cat.")))
    assert chat.messages[0]["content"] == [picture]
    assert chat.fault == "it has contents that are no text"


TEXT = st.sampled_from(["", " ", "3", "<think>\nHm.\n</think>", "<think>Hm.</think>3", "\u2028\x00", "\ud800"])
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.sampled_from(["", "c1", "c2"]),
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": st.sampled_from(["", "add"]), "arguments": st.sampled_from(['{"a": 1}', "[1]", "{", ""])}
            ),
        }
    ),
    max_size=2,
)
SAID = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.one_of(st.none(), TEXT)},
    optional={"tool_calls": CALLS, "reasoning_content": st.one_of(st.none(), TEXT)},
)
SENT = st.one_of(
    SAID,
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "critic"]), "content": TEXT}),
    st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": st.sampled_from(["c1", "c2"]), "content": TEXT}),
)


@settings(max_examples=150, deadline=None)
@given(history=st.lists(SENT, max_size=4), said=SAID, reason=st.sampled_from(["stop", "length"]))
def test_sft_reads_every_conversation_that_has_no_fault(history: Any, said: Any, reason: str) -> None:
    (chat,) = chats(of(Call("a", None, {"messages": history}, said, reason, 1, 1)))
    if chat.fault is None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "chats.jsonl"
            path.write_text(json.dumps({"messages": chat.messages}))
            (dialogue,) = read_dialogues(path, "all")
        assert [*dialogue.trained] == [len(chat.messages) - 1]
