"""Which recorded turn a request continues: what a session remembers of its last requests changes only the time.

Beside the session that remembers is one that remembers nothing, and walks all messages of every request.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.gateway import conversations
from agentrl.gateway.conversations import Conversations, Turn, Way, message_key
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
