"""Laws of recording, for random agents: whatever they ask, every prompt and every sampled token is in the tree."""

from __future__ import annotations

import asyncio
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrl.gateway import SessionSettings
from agentrl.gateway.conversations import message_key
from agentrl.tokens.contract import Position
from agentrl.tokens.template import ChatTemplate

TOOLS = [{"type": "function", "function": {"name": "calculate", "parameters": {"type": "object"}}}]
ANSWERS = [
    "It is 408.",
    # Its text is no other answer's: a client that leaves the thinking out could mean either.
    "<think>\nHm.\n</think>\n\nIt must be 408.",
    '<tool_call>\n{"name": "calculate", "arguments": {"n": 1}}\n</tool_call>',
    '<tool_call>\n{"name": "calculate", "arguments": {12 *}}\n</tool_call>',
    "",
]
STEP = st.fixed_dictionaries(
    {
        "continue": st.integers(0, 30),
        "new": st.sampled_from(["user", "tool", "both", "system"]),
        "edit": st.sampled_from([None, None, None, "content", "drop"]),
        "text": st.sampled_from(["What is 12 * 34?", "Check the answer.", "é\n"]),
        "tools": st.booleans(),
        "answer": st.sampled_from(ANSWERS),
        "spelled": st.booleans(),
        "cut": st.booleans(),
    }
)


def request(step, conversations):
    """The messages of a call: a known conversation, perhaps edited, and something new."""
    messages = list(conversations[step["continue"] % len(conversations)])
    if step["edit"] == "content" and messages:
        messages[-1] = messages[-1] | {"content": "Something else."}
    if step["edit"] == "drop" and len(messages) > 1:
        del messages[-2]
    user = {"role": "user", "content": step["text"]}
    tool = {"role": "tool", "tool_call_id": "1", "content": step["text"]}
    new = {"user": [user], "tool": [tool], "both": [tool, user], "system": [{"role": "system", "content": "Brief."}]}
    return messages + new[step["new"]]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, min_size=1, max_size=8), st.booleans())
def test_every_prompt_and_every_sample_of_a_random_agent_is_recorded(in_process, backend, steps, cutting):
    session = in_process.gateway.open_session(SessionSettings(training=True))
    del backend.requests[:], backend.script[:]
    template = ChatTemplate(backend.renderer.vocabulary, "the model")
    answered = asyncio.run(agent(in_process, backend, session, steps, cutting))
    spans = {span.sampled.call: (index, span) for index, span in enumerate(session.tree.spans) if span.sampled}
    assert list(spans) == [call.id for call in session.calls]
    by_id = {call.id: call for call in session.calls}
    for call, sent, ids in zip(session.calls, backend.requests, answered, strict=True):
        index, span = spans[call.id]
        assert list(span.ids) == ids
        assert session.tree.path(Position(index, len(ids))) == [*sent.prompt_ids, *ids]
        if not cutting:
            assert backend.renderer.vocabulary.decode(sent.prompt_ids) == template.text(
                call.request["messages"], call.request.get("tools")
            )
        if call.parent is not None and call.fork_reason is None:
            before, _ = spans[call.parent]
            assert on_the_way(session.tree, index, before)
        if call.parent is not None:
            history = [*by_id[call.parent].request["messages"], by_id[call.parent].message]
            asked = call.request["messages"][: len(history)]
            assert [message_key(message) for message in asked] == [message_key(message) for message in history]
    session.close()


HALVES = st.text(st.characters() | st.just("\ud83d"), max_size=6)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | HALVES
CALL = st.fixed_dictionaries({"name": HALVES, "arguments": VALUES | st.dictionaries(HALVES, VALUES, max_size=3)})


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CALL, min_size=1, max_size=2), HALVES, st.booleans())
def test_whatever_a_policy_calls_comes_back_from_an_agent_as_its_own_turn(in_process, backend, calls, beside, broken):
    """Halves of characters, escapes and anything that is no object among its arguments, whole and broken off."""
    session = in_process.gateway.open_session(SessionSettings(training=True))
    del backend.requests[:], backend.script[:]
    blocks = [f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls]
    text = beside.encode(errors="backslashreplace").decode() + "\n".join(blocks)
    backend.says(text[: -len("}\n</tool_call>")] if broken else text, "Yes.")

    async def agent():
        async with in_process.client(session) as client:
            ask = [{"role": "user", "content": "What is 12 * 34?"}]
            completion = await client.chat.completions.create(model="x", messages=ask, tools=TOOLS)
            answer = completion.choices[0].message.model_dump(exclude_none=True)
            more = {"role": "user", "content": "Again."}
            await client.chat.completions.create(model="x", messages=[*ask, answer, more], tools=TOOLS)

    asyncio.run(agent())
    first, second = session.calls
    assert second.parent == first.id
    assert second.fork_reason is None
    session.close()


def on_the_way(tree, span, ancestor):
    while span > ancestor:
        span = tree.spans[span].parent
    return span == ancestor


async def agent(connection, backend, session, steps, cutting):
    """Makes the calls one after another; returns the ids that the backend answered with."""
    conversations, answered = [[]], []
    async with connection.client(session) as client:
        for step in steps:
            messages = request(step, conversations)
            (backend.spells if step["spelled"] and step["answer"] else backend.says)(step["answer"])
            if cutting and step["cut"] and len(backend.script[-1]) > 2:
                backend.script[-1] = backend.chunk(backend.script[-1][:-2], finish="length")
            answered.append(list(getattr(backend.script[-1], "ids", backend.script[-1])))
            tools = {"tools": TOOLS} if step["tools"] else {}
            completion = await client.chat.completions.create(model="x", messages=messages, **tools)
            answer = completion.choices[0].message.model_dump(exclude_none=True)
            conversations.append([*messages, answer])
    return answered
