"""What the SDK makes of an answer is taken when it comes back, and is the same turn: one conversation is one chain."""

from __future__ import annotations

import json

import pytest
from tests.gateway.messages.conftest import ASK, CALL, TOOLS

from agentrl.gateway.dialects.messages.blocks import ERRORS, SIGNATURE, Conversation

SAID = f"<think>\nMultiply.\n</think>\n\nLet me see.\n{CALL}"


def _turn(content):
    return [{"role": "assistant", "content": content}]


def _dumped(answer, **options):
    return [block.model_dump(**options) for block in answer.content]


def _edited(answer, **edits):
    """The blocks with some fields of those of one type replaced."""
    blocks = [block.to_dict() for block in answer.content]
    return [block | edits.get(block["type"], {}) for block in blocks]


SHAPES = {
    "as objects": lambda answer: _turn(answer.content),
    "to_param": lambda answer: [answer.to_param()],
    "to_dict": lambda answer: _turn([block.to_dict() for block in answer.content]),
    "model_dump": lambda answer: _turn(_dumped(answer)),
    "model_dump, JSON": lambda answer: _turn(_dumped(answer, mode="json", exclude_none=True)),
    "the whole message": lambda answer: [answer.model_dump()],
    "cached": lambda answer: _turn([*_dumped(answer)[:-1], _dumped(answer)[-1] | {"cache_control": {"type": "x"}}]),
    "without thinking": lambda answer: _turn(answer.content[1:]),
    "only the signature": lambda answer: _turn(_edited(answer, thinking={"thinking": ""})),
    "thinking in other words": lambda answer: _turn(_edited(answer, thinking={"thinking": "In short: multiply."})),
    "thinking redacted": lambda answer: _turn(
        [{"type": "redacted_thinking", "data": answer.content[0].signature}, *answer.content[1:]]
    ),
    "block by block": lambda answer: [{"role": "assistant", "content": [block]} for block in answer.content],
    "parsed": lambda answer: _turn(_edited(answer, text={"parsed_output": None, "citations": None})),
    "input rewritten": lambda answer: _turn(_edited(answer, tool_use={"input": json.loads('{ "n" :12 }')})),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_turn_that_comes_back_is_the_recorded_one(whole, open_session, backend, shape):
    written = backend.spells(SAID)
    backend.says("It is 408.")
    session = open_session()
    answer = whole.ask(session, tools=TOOLS)
    result = {"type": "tool_result", "tool_use_id": answer.content[-1].id, "content": "408"}
    whole.ask(session, [*ASK, *SHAPES[shape](answer), {"role": "user", "content": [result]}], tools=TOOLS)
    first, second = session.calls
    assert (second.parent, second.fork_reason, second.unmet) == (first.id, None, ())
    recorded = [*backend.requests[0].prompt_ids, *written]
    assert backend.requests[1].prompt_ids[: len(recorded)] == recorded


@pytest.mark.parametrize("signature", ["", "EqQBCkYIBBgCKkA", "foreign"])
def test_a_signature_of_another_session_is_counted_and_the_recorded_thinking_goes_on(
    whole, open_session, backend, signature
):
    backend.says(SAID, SAID, "It is 408.")
    if signature == "foreign":
        signature = whole.ask(open_session(), tools=TOOLS).content[0].signature
    else:
        backend.script.pop(0)
    session = open_session()
    answer = whole.ask(session, tools=TOOLS)
    blocks = _edited(answer, thinking={"signature": signature})
    result = {"type": "tool_result", "tool_use_id": answer.content[-1].id, "content": "408"}
    whole.ask(session, [*ASK, *_turn(blocks), {"role": "user", "content": [result]}], tools=TOOLS)
    first, second = session.calls
    assert (second.parent, second.fork_reason, second.unmet) == (first.id, None, ("thinking.signature",))


def test_thinking_of_elsewhere_is_not_rendered(whole, open_session, backend):
    backend.says("It is 408.", "It is 408.")
    thinking = {"type": "thinking", "thinking": "A secret.", "signature": "EqQBCkYIBBgCKkA"}
    use = {"type": "tool_use", "id": "toolu_1", "name": "calculate", "input": {"n": 12}}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "408"}]}
    session = open_session()
    whole.ask(session, [*ASK, {"role": "assistant", "content": [thinking, use]}, result], tools=TOOLS)
    whole.ask(open_session(), [*ASK, {"role": "assistant", "content": [use]}, result], tools=TOOLS)
    assert session.calls[0].unmet == ("thinking.signature",)
    assert backend.requests[0].prompt_ids == backend.requests[1].prompt_ids
    assert "secret" not in backend.renderer.vocabulary.decode(backend.requests[0].prompt_ids)


def test_thinking_comes_with_a_signature_in_every_way(asks, open_session, backend):
    backend.says(SAID)
    session = open_session()
    thinking, text, use = asks.ask(session, tools=TOOLS).content
    assert (thinking.type, thinking.thinking) == ("thinking", "Multiply.")
    assert session.thinking(thinking.signature) == "Multiply."
    assert (text.text.strip(), use.input) == ("Let me see.", {"n": 12})


def test_thinking_that_is_to_be_omitted_is_told_by_its_signature_alone(asks, open_session, backend):
    backend.says(SAID)
    session = open_session()
    fields = {"thinking": {"type": "adaptive", "display": "omitted"}}
    thinking, *_ = asks.ask(session, tools=TOOLS, **fields).content
    assert thinking.thinking == ""
    assert session.thinking(thinking.signature) == "Multiply."


ARGUMENTS = {
    "cut off": '{"n": "12',
    "a list": "[12, 34]",
    "a number": "12",
    "not a number": '{"n": NaN}',
    "too large": '{"n": 1e999}',
    "half a character": '{"n": "\\ud800"}',
    "more than 64 bits": '{"n": 123456789012345678901234567890}',
    "one key twice": '{"n": 12, "n": 34}',
    "spaced out": '{ "n" :\n12.50 }',
    "what marks a text": '{"INVALID_JSON": "n = 12"}',
    "beyond ASCII": '{"n": "zwölf \\u00d7 34 ×"}',
    "nothing": "{}",
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments_come_back_as_they_were_written(asks, open_session, backend, arguments):
    written = ARGUMENTS[arguments]
    backend.says(f'<tool_call>\n{{"name": "calculate", "arguments": {written}}}\n</tool_call>', "It is 408.")
    session = open_session()
    answer = asks.ask(session, tools=TOOLS)
    (use,) = answer.content
    recorded = session.calls[0].message["tool_calls"][0]["function"]["arguments"]
    if arguments in ("cut off", "a list", "a number", "not a number", "too large", "half a character"):
        assert use.input == {"INVALID_JSON": recorded}
    elif arguments == "what marks a text":
        assert use.input == {"INVALID_JSON": written}
    else:
        assert use.input == json.loads(written)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "No such number.", "is_error": True}
    turns = [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    asks.ask(session, [*ASK, *turns], tools=TOOLS)
    first, second = session.calls
    assert (second.parent, second.fork_reason, second.unmet) == (first.id, None, ("tool_result.is_error",))


def test_what_a_request_repeats_is_not_read_again_and_what_follows_it_is():
    memory, asked = {}, []

    def read(messages, remembered=memory):
        conversation = Conversation(lambda signature: asked.append(signature), remembered)
        conversation.add_messages(messages)
        return conversation.messages, conversation.unmet

    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    turns = [{"role": "assistant", "content": [thinking, {"type": "text", "text": "one"}]}] * 2
    failed = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "is_error": True}]}
    history = [*ASK, *turns, failed]
    first = read(history)
    assert first == ([*ASK, {"role": "assistant", "content": "oneone"}, *first[0][2:]], {SIGNATURE, ERRORS})
    assert asked == ["x", "x"]
    assert read([*history, *ASK]) == ([*first[0], *ASK], first[1])
    assert asked == ["x", "x"]
    edited = [*ASK, {"role": "assistant", "content": "two"}, turns[0], failed]
    assert read(edited) == read(edited, {})
    assert asked == ["x"] * 4
