"""Which recorded turn a request continues: what a session remembers of its last requests changes only the time.

Beside the session that remembers is one that remembers nothing, and walks all messages of every request.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.gateway import conversations
from agentrl.gateway.conversations import Bodies, Conversations, Turn, Way, message_key
from agentrl.gateway.dialects.conversation import read_messages
from agentrl.gateway.sampling import Draws

THOUGHTS = [None, None, "so", "or so"]
TOOLS = ["", "[1]", "[2]"]

said = st.sampled_from(["a", "b"])
questions = st.builds(lambda text: {"role": "user", "content": text}, said)
answers = st.builds(
    lambda text, thought: {"role": "assistant", "content": text} | ({"reasoning_content": thought} if thought else {}),
    said,
    st.sampled_from(THOUGHTS),
)


@dataclass
class Recorder:
    """A session's conversations, each request of which is answered at once."""

    remembers: bool
    conversations: Conversations = field(default_factory=Conversations)
    turns: list[Turn] = field(default_factory=list)
    ways: list[Way] = field(default_factory=list)

    def ask(self, tools: str, messages: list[Any], answer: Any, record: bool) -> tuple[Any, ...]:
        """What a request continues, as plain values."""
        with pytest.MonkeyPatch.context() as patched:
            if not self.remembers:
                patched.setattr(conversations, "_nearest", lambda recent, messages: (None, 0))
            match, way = self.conversations.find(tools, copy.deepcopy(messages))
        assert way.messages == messages
        assert way.keys == [message_key(message) for message in messages]
        if record:
            turn = Turn(f"call-{len(self.turns)}", bytes([len(self.turns)]), 0, False, answer, ())
            if match.turn is not None:
                match.turn.continued += 1
            self.conversations.add(way, message_key(answer), turn, parent=match.turn)
            self.turns.append(turn)
        return match.turn and match.turn.call, match.messages, match.fork_reason


@st.composite
def histories(draw: st.DrawFn, said_before: list[list[Any]]) -> list[Any]:
    """Messages that go on from what was said before, in the end or in the middle, some of it written anew."""
    before = list(draw(st.sampled_from(said_before)))
    before = before[: draw(st.integers(0, len(before)))] if draw(st.booleans()) else before
    if before and draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(before) - 1))
        before[place] = draw(answers if before[place]["role"] == "assistant" else questions)
    return [*before, *draw(st.lists(questions | answers, max_size=2)), draw(questions)]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_a_request_continues_what_it_would_continue_without_a_memory(data: st.DataObject) -> None:
    one, other = Recorder(remembers=True), Recorder(remembers=False)
    said_before: list[list[Any]] = [[]]
    for _ in range(data.draw(st.integers(1, 14))):
        messages, answer = data.draw(histories(said_before)), data.draw(answers)
        tools = data.draw(st.sampled_from(TOOLS)) if data.draw(st.integers(0, 3)) == 0 else ""
        record = data.draw(st.integers(0, 4)) > 0
        assert one.ask(tools, messages, answer, record) == other.ask(tools, messages, answer, record)
        said_before.append([*messages, answer])
        if one.turns and data.draw(st.integers(0, 3)) == 0:
            place = data.draw(st.integers(0, len(one.turns) - 1))
            for each in (one, other):
                each.turns[place].delivered = not each.turns[place].delivered


def test_two_calls_at_once_are_recorded_as_one_after_the_other() -> None:
    """A turn may be recorded in the middle of messages that another call is about to be recorded with."""
    thought = {"role": "assistant", "content": "a", "reasoning_content": "so"}
    messages = [{"role": "user", "content": "b"}, thought, {"role": "user", "content": "b"}]
    for remembers in (True, False):
        recorder = Recorder(remembers)
        _, way = recorder.conversations.find("", messages)
        recorder.ask("", messages[:1], {"role": "assistant", "content": "a"}, record=True)
        recorder.conversations.add(way, ("assistant", "c"), Turn("late", b"", 0, False, {"content": "c"}, ()))
        again = [*messages, {"role": "assistant", "content": "c"}, messages[0]]
        assert recorder.ask("", again, thought, record=False) == (None, 0, "history edited")


alike = st.sampled_from([1, 1.0, True])
values = alike | st.sampled_from([0, False, "1", None, [], {}, "\ud83d", 2**70]) | st.lists(alike, max_size=1)
items = st.dictionaries(st.just("a"), values, max_size=1)
bodies = st.fixed_dictionaries({"messages": st.lists(items, max_size=4)}, optional={"n": values, "tools": st.just([1])})


@given(st.lists(bodies, max_size=8), st.lists(items, max_size=3))
def test_bodies_are_kept_to_the_letter_whatever_python_takes_for_equal(written: list[Any], begin: list[Any]) -> None:
    kept = Bodies()
    for body in written:
        body["messages"] = [*begin, *body["messages"]]
        text = json.dumps(body, sort_keys=True)
        recalled = kept.recall(json.loads(text))
        assert json.dumps(recalled, sort_keys=True) == text
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(conversations, "_LONG", 1)
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


@given(st.lists(st.integers(0, 2**31)), st.lists(st.integers(0, 2**31)), st.text())
def test_a_digest_goes_on_from_that_of_the_history(history: list[int], new: list[int], fields: str) -> None:
    draws, begun = Draws((0, "train")), Draws((0, "train")).take(history, "").prompt
    whole, further = draws.take([*history, *new], fields), Draws((0, "train")).take([*history, *new], fields, begun)
    assert (whole.request, whole.call) == (further.request, further.call)
    assert begun.further(new).state.digest() == further.prompt.state.digest() == whole.prompt.state.digest()


def test_what_a_request_repeats_is_not_read_again_and_what_follows_it_is() -> None:
    memory: dict[str, Any] = {}
    results = [
        {"role": "tool", "tool_call_id": f"{n}", "content": [{"type": "text", "text": f"{n}"}]} for n in range(4)
    ]
    first = read_messages(results, memory)
    edited = [*results[:2], {"role": "user", "content": "b", "refusal": ""}, *results[2:]]
    again = read_messages(edited, memory)
    assert again == read_messages(copy.deepcopy(edited))
    assert [one is other for one, other in zip(first, again, strict=False)] == [True, True, False, False]
    assert read_messages(results[:1], memory) == first[:1]
