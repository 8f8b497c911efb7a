"""Files of conversations: what is read, and what is refused with the number of its line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import ConfigError
from agentrl.training.dialogues import Dialogue, Trained, read_dialogues

ASK = {"role": "user", "content": "1 + 1?"}
SAID = {"role": "assistant", "content": "2"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "2"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def read(tmp_path: Path, *rows: Any, trained: Trained = "all") -> list[Dialogue]:
    return list(read_dialogues(written(tmp_path / "chats.jsonl", *rows), trained))


def of(*messages: Any, **beside: Any) -> dict[str, Any]:
    return {"messages": list(messages), **beside}


def test_a_line_is_a_conversation_with_the_turns_that_are_trained(tmp_path: Path) -> None:
    rows = [of(ASK, SAID), "", of(ASK, CALL, RESULT, SAID, tools=[TOOL])]
    plain, called = read(tmp_path, *rows)
    assert (plain.trained, called.trained, called.tools) == ([1], [1, 3], [TOOL])
    assert called.place.endswith("chats.jsonl:3")
    assert [each.trained for each in read(tmp_path, *rows, trained="last")] == [[1], [3]]


def test_a_message_of_weight_0_is_history_alone(tmp_path: Path) -> None:
    (one,) = read(tmp_path, of(ASK, {**SAID, "weight": 0}, ASK, {**SAID, "weight": 1}))
    assert one.trained == [3]
    assert all("weight" not in message for message in one.messages)


def test_parts_of_text_are_one_text_and_a_call_may_end_a_conversation(tmp_path: Path) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "1 +"}, {"type": "text", "text": " 1?"}]}
    (one,) = read(tmp_path, of(parts, CALL))
    assert one.messages[0]["content"] == "1 + 1?"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"messages": [', "chats.jsonl:2 is not JSON"),
        ("[1]", "chats.jsonl:2 holds [1], not an object"),
        ({"conversations": []}, "chats.jsonl:2 has no messages: its keys are ['conversations']"),
        (of(), "chats.jsonl:2 has no messages"),
        (of("Hi"), "chats.jsonl:2, message 1 is 'Hi', not an object"),
        (of(ASK, {"role": "bot", "content": "2"}), "chats.jsonl:2, message 2 has the role 'bot'"),
        (of({"role": "user", "content": 1}, SAID), "message 1 has the content 1"),
        (of({"role": "user"}, SAID), "message 1 has no content"),
        (of({"role": "user", "content": [{"type": "image_url"}]}, SAID), "message 1 has the content part"),
        (of(ASK), "chats.jsonl:2 has no message of the assistant"),
        (of(ASK, {"role": "assistant", "content": " "}), "message 2 is of the assistant and says nothing"),
        (of(ASK, {"role": "assistant", "content": "<think>Hm</think>"}), "message 2 is of the assistant and says"),
        (of(ASK, {**SAID, "weight": 0}), "has weight 0 on every message of the assistant"),
        (of(ASK, {**SAID, "weight": 2}), "message 2 has the weight 2"),
        (of(ASK, CALL, SAID), "message 2 calls a tool, as 'a', and its result does not follow"),
        (of(ASK, SAID, RESULT), "message 3 is the result of 'a', which no message right before it calls"),
        (of(ASK, {**CALL, "tool_calls": [{"id": "a"}]}), "message 2, call 1 is {'id': 'a'}"),
        (of(ASK, {"role": "assistant", "function_call": {}}), "message 2 has a function_call"),
        (of(ASK, SAID, tools=["add"]), "chats.jsonl:2 has the tool 'add'"),
    ],
    ids=str,
)
def test_a_line_that_is_no_conversation_is_refused_with_its_number(tmp_path: Path, row: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        read(tmp_path, of(ASK, SAID), row)


@pytest.mark.parametrize(("arguments", "problem"), [({}, "has the arguments {}"), ("{x", "arguments is not JSON")])
def test_arguments_are_text_that_holds_json(tmp_path: Path, arguments: Any, problem: str) -> None:
    call = {"id": "a", "function": {"name": "add", "arguments": arguments}}
    with pytest.raises(ConfigError, match=re.escape(problem)):
        read(tmp_path, of(ASK, {"role": "assistant", "tool_calls": [call]}))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the conversations '.*none\.jsonl' cannot be read"):
        list(read_dialogues(tmp_path / "none.jsonl", "all"))
