"""An episode's calls become a conversation in which every message stands once, whichever protocol they came in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.gateway.contract import Call
from agentrl.view.conversation import ToolCall, conversation, offered_tools, sections

SYSTEM = {"role": "system", "content": "Calculate."}
USER = {"role": "user", "content": "12 + 30?"}
ARGUMENTS = '{"expression": "12 + 30"}'
CALLED = {
    "role": "assistant",
    "content": None,
    "reasoning_content": "I need a tool.",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "calculate", "arguments": ARGUMENTS}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "42"}
ANSWER = {"role": "assistant", "content": "It is 42."}
TOOL = {"type": "function", "function": {"name": "calculate", "parameters": {}}}

CHAT = ({"messages": [SYSTEM, USER], "tools": [TOOL]}, {"messages": [SYSTEM, USER, CALLED, RESULT], "tools": [TOOL]})
RESPONSES = (
    {"instructions": "Calculate.", "input": "12 + 30?"},
    {
        "instructions": "Calculate.",
        "input": [
            USER,
            {"type": "reasoning", "summary": [], "encrypted_content": "handle"},
            {"type": "function_call", "call_id": "c1", "name": "calculate", "arguments": '{ "expression":"12 + 30" }'},
            {"type": "function_call_output", "call_id": "c1", "output": "42"},
        ],
    },
)
REFERRING = (
    {"instructions": "Calculate.", "input": "12 + 30?"},
    {
        "previous_response_id": "one",
        "input": [{"type": "function_call_output", "call_id": "c1", "output": "42"}],
    },
)
MESSAGES = (
    {"system": [{"type": "text", "text": "Calculate."}], "messages": [USER]},
    {
        "system": "Calculate.",
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "", "signature": "handle"},
                    {"type": "tool_use", "id": "c1", "name": "calculate", "input": {"expression": "12 + 30"}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "42"}]}],
            },
        ],
    },
)


def call(id, request, message, parent=None):
    return Call(id, parent, request, message, "stop", 1, 1)


def told(turns):
    return [
        [(turn.message.role, turn.message.text, turn.call) for turn in section.turns] for section in sections(turns)
    ]


@pytest.mark.parametrize(
    "requests", [CHAT, RESPONSES, REFERRING, MESSAGES], ids=["chat", "responses", "ids", "messages"]
)
def test_a_conversation_is_read_in_every_protocol(requests):
    turns = conversation([call("one", requests[0], CALLED), call("two", requests[1], ANSWER, "one")])
    assert told(turns) == [
        [
            *(("system", "Calculate.", None), ("user", "12 + 30?", None), ("assistant", "", 0)),
            *(("tool", "42", None), ("assistant", "It is 42.", 1)),
        ]
    ]
    row = sections(turns)[0].turns
    assert row[2].message.thinking == "I need a tool."
    assert row[2].message.calls == (ToolCall("calculate", ARGUMENTS, "c1"),)
    assert row[3].message.answers == "c1"
    assert row[3].first_sent == 1


def test_several_answers_to_one_prompt_are_branches_and_each_goes_on_by_itself():
    asked = {"messages": [USER]}
    again = {"messages": [USER, ANSWER, {"role": "user", "content": "Sure?"}]}
    calls = [
        *(call("a", asked, ANSWER), call("b", asked, ANSWER), call("c", again, {"content": "Yes."}, "b")),
        call("d", again, {"content": "No."}, "a"),
    ]
    turns = conversation(calls)
    assert told(turns) == [
        [("user", "12 + 30?", None)],
        [("assistant", "It is 42.", 0), ("user", "Sure?", None), ("assistant", "No.", 3)],
        [("assistant", "It is 42.", 1), ("user", "Sure?", None), ("assistant", "Yes.", 2)],
    ]
    assert [(section.after, section.place, section.of) for section in sections(turns)] == [
        *((None, 1, 1), (0, 1, 2), (0, 2, 2))
    ]


def test_an_edited_history_is_a_branch():
    edited = {"messages": [SYSTEM, {"role": "user", "content": "13 + 30?"}]}
    turns = conversation([call("a", {"messages": [SYSTEM, USER]}, ANSWER), call("b", edited, ANSWER, "a")])
    assert [len(section) for section in told(turns)] == [1, 2, 2]


def test_conversations_that_have_nothing_in_common_are_apart():
    turns = conversation([call("a", {"messages": [USER]}, ANSWER), call("b", {"prompt": "1 + 1 ="}, {"content": " 2"})])
    assert told(turns) == [
        [("user", "12 + 30?", None), ("assistant", "It is 42.", 0)],
        [("user", "1 + 1 =", None), ("assistant", " 2", 1)],
    ]


@pytest.mark.parametrize(
    "request_body",
    [
        {"messages": ["words", 3, None]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, "text"]}]},
        {"messages": [{"content": {"nested": [1]}}, {"role": 3, "tool_calls": "x"}, {"tool_calls": [1, {"id": 2}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result"}, {"type": "tool_use"}]}]},
        {"input": [{"type": "unknown", "x": 1}]},
        {"prompt": [[1, 2, 3]]},
        {},
    ],
)
def test_what_is_no_conversation_is_shown_as_it_is(request_body):
    turns = conversation([call("a", request_body, ANSWER)])
    row = [turn for section in sections(turns) for turn in section.turns]
    assert row[-1].call == 0
    shown = " ".join(f"{t.message.text} {t.message.other} {t.message.calls}" for t in row)
    for word in ("words", "nested", "image_url", "unknown", "[1, 2, 3]"):
        assert (word in json.dumps(request_body)) == (word in shown)


def test_a_long_conversation_and_a_deep_one_are_read():
    """Each request repeats, as the store gives it, the very messages of the one before it, and each call forks once."""
    messages, calls = [SYSTEM], []
    for index in range(400):
        messages = [*messages, {"role": "user", "content": str(index)}]
        calls += [
            call(f"{index}{name}", {"messages": messages}, ANSWER, calls[-2].id if calls else None) for name in "ab"
        ]
        messages = [*messages, ANSWER]
    found = sections(conversation(calls))
    assert sum(len(section.turns) for section in found) == 1 + 3 * 400
    assert len(found) == 1 + 2 * 400


def test_the_tools_that_were_offered_are_known_by_their_names():
    flat = {"type": "function", "name": "search", "parameters": {}}
    calls = [call("a", {"messages": [], "tools": [TOOL]}, ANSWER), call("b", {"input": "", "tools": [flat, 3]}, ANSWER)]
    assert offered_tools(calls) == {"calculate": TOOL, "search": flat}


PLAIN = st.recursive(
    st.none() | st.text(max_size=5) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "tool_calls", "function", "id", "input"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=40)
@given(
    st.lists(st.dictionaries(st.sampled_from(["messages", "input", "system", "prompt", "tools"]), PLAIN), max_size=3)
)
def test_no_request_of_any_protocol_keeps_an_episode_from_being_shown(requests):
    calls = [call(str(index), request, ANSWER, str(index - 1)) for index, request in enumerate(requests)]
    found = [turn for section in sections(conversation(calls)) for turn in section.turns]
    assert sorted(turn.call for turn in found if turn.call is not None) == list(range(len(calls)))
    offered_tools(calls)
