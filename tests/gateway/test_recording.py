"""What calls leave behind: spans in the token tree, parents, and reasons where history had to be rendered anew."""

from __future__ import annotations

import asyncio
import json
import time

import openai
import pytest

from agentrl.algorithms.credit import TreeCredit
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.tokens.contract import Position

TOOLS = [{"type": "function", "function": {"name": "calculate", "parameters": {"type": "object"}}}]
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
ASK = {"role": "user", "content": "What is 12 * 34?"}
MORE = {"role": "user", "content": "Check the answer."}


@pytest.fixture
def session(open_session):
    return open_session()


@pytest.fixture
def ask(in_process, backend, session):
    """One call of the session: messages in, the assistant message out as an agent would send it back."""

    def ask(messages, tools=None, **request):
        async def create():
            async with in_process.client(session) as client:
                fields = request | ({"tools": tools} if tools else {})
                return await client.chat.completions.create(model="x", messages=messages, **fields)

        return asyncio.run(create()).choices[0].message.model_dump()

    return ask


def prompts(backend):
    return [list(request.prompt_ids) for request in backend.requests]


def sampled(session):
    return [span for span in session.tree.spans if span.sampled]


def test_a_conversation_grows_on_its_own_ids_however_they_were_split(ask, backend, session):
    messages = [SYSTEM, ASK]
    written = []
    for answer in ("It is 408.", "The sum is 85.", "Let me see: 408."):
        written.append(backend.spells(answer))
        messages += [ask(messages), MORE]
    first, second, third = prompts(backend)
    assert second[: len(first) + len(written[0])] == first + written[0]
    assert third[: len(second) + len(written[1])] == second + written[1]
    assert [list(span.ids) for span in sampled(session)] == written
    assert [call.parent for call in session.calls] == [None, session.calls[0].id, session.calls[1].id]
    assert [call.fork_reason for call in session.calls] == [None, None, None]
    text = backend.renderer.vocabulary.decode(third)
    assert backend.renderer.vocabulary.encode(text) != third


def test_a_sampled_span_holds_what_the_backend_said_of_it(ask, backend, session):
    backend.says("It is 408.")
    ask([ASK], temperature=0.5)
    (span,) = sampled(session)
    assert span.sampled.call == session.calls[0].id
    assert span.sampled.logprobs == tuple(-0.01 * (n + 1) for n in range(len(span.ids)))
    assert set(span.sampled.versions) == {backend.version}
    assert span.sampled.temperature == 0.5


def test_alternatives_are_recorded_where_a_request_asked_for_them(ask, backend, session):
    ids = backend.renderer.vocabulary.encode("It is 408.")
    tops = tuple(((token, -0.5), (0, -2.0)) for token in [*ids, backend.end])
    backend.script = [backend.chunk([*ids, backend.end], top_logprobs=tops)]
    ask([ASK], logprobs=True, top_logprobs=2)
    backend.says("Yes.")
    ask([ASK], logprobs=True)
    assert [span.sampled.alternatives for span in sampled(session)] == [tops, ()]


def test_alternatives_that_are_not_one_a_token_break_the_contract(in_process, backend, session):
    async def create():
        async with in_process.client(session) as client:
            once = client.with_options(max_retries=0)
            await once.chat.completions.create(model="x", messages=[ASK], logprobs=True, top_logprobs=2)

    backend.script = [backend.chunk([*backend.renderer.vocabulary.encode("Yes."), backend.end], top_logprobs=((),))]
    with pytest.raises(openai.InternalServerError, match="alternatives for 1 of them"):
        asyncio.run(create())
    assert not session.calls


def test_calls_tell_when_they_came_and_how_long_they_waited_where_the_backend_knows(ask, backend, session):
    """A call that follows another came after it had its answer."""
    ids = [*backend.renderer.vocabulary.encode("It is 408."), backend.end]
    opened = time.monotonic()
    backend.script = [backend.chunk(ids, first_token=time.monotonic() + 60)]  # A backend's word is taken.
    messages = [ASK]
    messages += [ask(messages), MORE]
    backend.says("Yes.")
    ask(messages)
    first, second = session.calls
    since = opened - session.opened
    assert 0 < first.started < first.started + first.seconds <= second.started < time.monotonic() - session.opened
    assert since + 60 - first.started == pytest.approx(first.waited, abs=30)
    assert second.waited is None


def test_the_path_to_a_span_is_the_prompt_that_the_backend_was_given(ask, backend, session):
    messages = [ASK]
    for answer in ("It is 408.", "The sum is 85."):
        backend.spells(answer)
        messages += [ask(messages), MORE]
    for prompt, span in zip(prompts(backend), sampled(session), strict=True):
        assert session.tree.path(Position(span.parent, span.fork)) == prompt


def test_branches_share_their_history(ask, backend, session):
    backend.spells("It is 408.")
    answer = ask([ASK])
    for follow in ("Again?", "Sure?"):
        backend.says("Yes.")
        ask([ASK, answer, {"role": "user", "content": follow}])
    root, left, right = session.calls
    assert (left.parent, right.parent) == (root.id, root.id)
    assert len([span for span in session.tree.spans if span.parent == -1]) == 1
    assert len(session.tree) < sum(len(prompt) for prompt in prompts(backend))


def test_equal_samples_are_two_spans_and_each_is_continued(ask, backend, session):
    backend.says("It is 408.", "It is 408.")
    first, second = ask([ASK]), ask([ASK])
    assert first == second
    assert len(sampled(session)) == 2
    backend.says("Yes.", "Yes.")
    ask([ASK, first, MORE])
    ask([ASK, second, MORE])
    assert {call.parent for call in session.calls[2:]} == {call.id for call in session.calls[:2]}


def test_tool_call_ids_tell_equal_turns_apart(ask, backend, session):
    text = '<tool_call>\n{"name": "calculate", "arguments": {}}\n</tool_call>'
    backend.says(text, text)
    ask([ASK], TOOLS)
    second = ask([ASK], TOOLS)
    backend.says("Yes.")
    result = {"role": "tool", "tool_call_id": second["tool_calls"][0]["id"], "content": "1"}
    ask([ASK, second, result], TOOLS)
    assert session.calls[2].parent == session.calls[1].id


def test_parallel_tool_results_are_one_turn(ask, backend, session):
    call = '<tool_call>\n{"name": "calculate", "arguments": {"n": %d}}\n</tool_call>'
    backend.says(f"{call % 1}\n{call % 2}", "Done.")
    answer = ask([ASK], TOOLS)
    ids = [each["id"] for each in answer["tool_calls"]]
    assert len(set(ids)) == 2
    results = [{"role": "tool", "tool_call_id": each, "content": str(n)} for n, each in enumerate(ids)]
    ask([ASK, answer, *results], TOOLS)
    text = backend.renderer.vocabulary.decode(prompts(backend)[1])
    assert text.endswith(
        "<|im_start|>user\n<tool_response>\n0\n</tool_response>\n<tool_response>\n1\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert session.calls[1].fork_reason is None


def test_a_turn_that_ends_with_its_one_call_is_closed_and_extended(ask, backend, session):
    vocabulary = backend.renderer.vocabulary
    ids = vocabulary.encode('<tool_call>\n{"name": "calculate", "arguments": {"n": 1}}\n</tool_call>')
    backend.script = [backend.chunk(ids)]
    answer = ask([ASK], TOOLS, parallel_tool_calls=False)
    backend.says("Done.")
    messages = [ASK, answer, {"role": "tool", "tool_call_id": "1", "content": "1"}]
    ask(messages, TOOLS)
    assert session.calls[1].fork_reason is None
    assert prompts(backend)[1] == backend.renderer.render(messages, TOOLS)


def rewritten(message):
    """What frameworks make of a turn: null content empty, arguments written anew, null fields gone, new ids."""
    calls = [
        {
            "id": f"id-{n}",
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(json.loads(call["function"]["arguments"]), indent=1, sort_keys=True),
            },
        }
        for n, call in enumerate(message["tool_calls"] or [])
    ]
    return {"role": "assistant", "content": message["content"] or "", "tool_calls": calls}


def test_a_turn_is_known_by_its_meaning(ask, backend, session):
    backend.spells('<tool_call>\n{"name": "calculate", "arguments": {"b": false, "a": "é"}}\n</tool_call>')
    answer = ask([ASK], TOOLS)
    backend.says("Done.")
    parts = ASK | {"content": [{"type": "text", "text": ASK["content"]}]}
    ask([parts, rewritten(answer), {"role": "tool", "tool_call_id": "id-0", "content": "1"}], TOOLS)
    assert session.calls[1].fork_reason is None
    assert session.calls[1].parent == session.calls[0].id


@pytest.mark.parametrize(
    "edit",
    [
        lambda answer: answer | {"content": "It is 409."},
        lambda answer: answer | {"content": None},
        lambda answer: {"role": "user", "content": answer["content"]},
    ],
)
def test_an_edited_history_is_rendered_and_forks_where_it_differs(ask, backend, session, edit):
    backend.says("It is 408.")
    answer = ask([SYSTEM, ASK])
    backend.says("Yes.")
    edited = edit(answer)
    ask([SYSTEM, ASK, edited, MORE])
    assert session.calls[1].fork_reason == ("history edited" if edited["role"] == "assistant" else None)
    assert session.calls[1].parent is None
    assert prompts(backend)[1] == backend.renderer.render([SYSTEM, ASK, edited, MORE])
    assert len(sampled(session)) == 2


def test_one_edited_turn_costs_only_what_follows_it(ask, backend, session):
    backend.spells("It is 408.")
    first = ask([ASK])
    backend.spells("The sum is 85.")
    ask([ASK, first, MORE])
    backend.says("Yes.")
    ask([ASK, first, MORE, {"role": "assistant", "content": "The sum is 86."}, MORE])
    assert session.calls[2].fork_reason == "history edited"
    assert session.calls[2].parent == session.calls[0].id
    assert len(sampled(session)) == 3


def test_other_tools_are_a_fork_with_its_reason(ask, backend, session):
    backend.says("It is 408.", "Yes.")
    answer = ask([ASK], TOOLS)
    ask([ASK, answer, MORE])
    assert session.calls[1].fork_reason == "tools changed"
    assert session.calls[1].parent == session.calls[0].id


def test_a_new_conversation_is_no_fork(ask, backend, session):
    backend.says("It is 408.", "Yes.")
    ask([ASK])
    ask([{"role": "user", "content": "Another thing."}])
    assert [call.fork_reason for call in session.calls] == [None, None]
    assert [call.parent for call in session.calls] == [None, None]


def test_a_first_call_may_bring_a_history(ask, backend, session):
    backend.says("Yes.")
    ask([ASK, {"role": "assistant", "content": "408"}, MORE])
    assert session.calls[0].fork_reason is None


def test_interleaved_conversations_each_extend_their_own(ask, backend, session):
    left, right = [SYSTEM, ASK], [SYSTEM, MORE]
    for round_ in range(3):
        for messages in (left, right):
            backend.spells(f"It is {round_}: {messages[1]['content']}")
            messages += [ask(messages), {"role": "user", "content": f"And {round_}?"}]
    by_id = {call.id: call for call in session.calls}
    for call in session.calls[2:]:
        assert call.fork_reason is None
        assert by_id[call.parent].request["messages"][1] == call.request["messages"][1]
    assert len(sampled(session)) == 6


def test_sub_agents_at_once_each_extend_their_own(connection, backend, open_session, monkeypatch):
    async def generate(request):
        backend.requests.append(request)
        await asyncio.sleep(0.001 * (len(request.prompt_ids) % 3))
        ids = [
            token for char in f"It is {len(backend.requests)}." for token in backend.renderer.vocabulary.encode(char)
        ]
        yield backend.chunk([*ids, backend.end])

    async def sub_agent(client, number):
        messages = [SYSTEM, {"role": "user", "content": f"Task {number}."}]
        for _ in range(4):
            completion = await client.chat.completions.create(model="x", messages=messages)
            messages += [completion.choices[0].message, MORE]

    async def agent():
        async with connection.client(session) as client:
            await asyncio.gather(*(sub_agent(client, number) for number in range(6)))

    monkeypatch.setattr(backend, "generate", generate)
    session = open_session()
    asyncio.run(agent())
    by_id = {call.id: call for call in session.calls}
    assert len(by_id) == 24
    assert {call.fork_reason for call in session.calls} == {None}
    for call in session.calls:
        if call.parent is not None:
            assert by_id[call.parent].request["messages"] == call.request["messages"][:-2]
    paths = {tuple(session.tree.path(Position(n, 0))) for n, span in enumerate(session.tree.spans) if span.sampled}
    assert paths == {tuple(request.prompt_ids) for request in backend.requests}


@pytest.mark.parametrize("difference", [{"content": "Check the sum."}, {"role": "system"}, {"name": "ann"}])
def test_conversations_with_equal_answers_are_not_confused(ask, backend, session, difference):
    backend.says(*["It is 408."] * 4)
    asked = [[MORE], [MORE | difference]]
    answers = [ask(messages) for messages in asked]
    for messages, answer in zip(asked, answers, strict=True):
        ask([*messages, answer, ASK])
    assert [call.parent for call in session.calls[2:]] == [call.id for call in session.calls[:2]]


def test_a_few_shot_prompt_is_a_conversation_of_its_own(ask, backend, session):
    backend.says("It is 408.", "Yes.", "No.")
    ask([SYSTEM, ASK])
    shots = [SYSTEM, MORE, {"role": "assistant", "content": "An example."}]
    ask([*shots, ASK])
    ask([*shots, MORE])
    assert [call.fork_reason for call in session.calls] == [None, None, None]


def test_a_swapped_system_prompt_is_an_edit(ask, backend, session):
    backend.says("It is 408.", "Yes.")
    answer = ask([SYSTEM, ASK])
    ask([{"role": "system", "content": "Another agent takes over."}, ASK, answer, MORE])
    assert session.calls[1].fork_reason == "history edited"


def test_thinking_that_the_template_drops_is_a_fork_with_its_reason(ask, backend, session):
    backend.says("<think>\nMultiply.\n</think>\n\nIt is 408.")
    answer = ask([ASK])
    assert answer["reasoning_content"] == "Multiply."
    backend.says("Yes.")
    ask([ASK, answer, MORE])
    assert session.calls[1].fork_reason == "thinking dropped by the template"
    assert "Multiply." not in backend.renderer.vocabulary.decode(prompts(backend)[1])
    assert session.calls[1].parent == session.calls[0].id


def test_after_thinking_was_dropped_the_chain_goes_on_extended(ask, backend, session):
    backend.says("<think>\nMultiply.\n</think>\n\nIt is 408.")
    messages = [ASK, ask([ASK]), MORE]
    for _ in range(2):
        backend.says("Yes.")
        messages += [ask(messages), MORE]
    assert [call.fork_reason for call in session.calls] == [None, "thinking dropped by the template", None]


@pytest.mark.parametrize("kept", [True, False])
def test_thinking_stays_through_tool_results_whether_the_agent_returns_it_or_not(ask, backend, session, kept):
    call = '<tool_call>\n{"name": "calculate", "arguments": {}}\n</tool_call>'
    written = backend.spells(f"<think>\nMultiply.\n</think>\n\n{call}")
    answer = ask([ASK], TOOLS)
    if not kept:
        del answer["reasoning_content"]
    backend.says("Yes.", "Yes.")
    messages = [ASK, answer, {"role": "tool", "tool_call_id": "1", "content": "408"}]
    final = ask(messages, TOOLS)
    before, after = prompts(backend)
    assert after[: len(before) + len(written)] == before + written
    ask([*messages, final, MORE], TOOLS)
    assert session.calls[2].fork_reason == "thinking dropped by the template"


@pytest.mark.parametrize("new", [MORE, {"role": "tool", "tool_call_id": "1", "content": "408"}])
def test_an_end_of_turn_that_the_template_never_writes_is_sampled_and_not_repeated(ask, backend, session, new):
    vocabulary = backend.renderer.vocabulary
    written = vocabulary.encode("It is 408.")
    backend.script = [[*written, vocabulary.convert_tokens_to_ids("<|endoftext|>")]]
    backend.says("Yes.")
    answer = ask([ASK])
    assert answer["content"] == "It is 408."
    ask([ASK, answer, new])
    first, second = prompts(backend)
    whole = vocabulary.decode(second)
    assert second[: len(first) + len(written)] == first + written
    assert whole == vocabulary.decode(backend.renderer.render([ASK, answer, new]))
    assert "<|endoftext|>" not in whole
    assert session.calls[1].fork_reason is None
    assert session.calls[1].parent == session.calls[0].id
    before, after = sampled(session)
    assert list(before.ids) == [*written, vocabulary.convert_tokens_to_ids("<|endoftext|>")]
    assert session.tree.path(Position(after.parent, after.fork)) == second


STRAY = [
    "I think. </think> It is 408.",
    "<think>\nHm.\n</think>\n\nI think. </think> It is 408.",
    "</think> It is 408.",
    "It is 408. </think>",
    "One </think> two </think> three",
    "I <think> it is 408.",
]


@pytest.mark.parametrize("written", STRAY)
@pytest.mark.parametrize("way", ["unchanged", "without thinking", "thinking inside"])
def test_a_turn_with_stray_marks_of_thinking_is_found_when_the_agent_returns_it(ask, backend, session, written, way):
    backend.says(written, "Yes.")
    answer = ask([ASK])
    if way == "without thinking":
        answer.pop("reasoning_content", None)
    if way == "thinking inside":
        thought = answer.pop("reasoning_content", None)
        answer["content"] = f"<think>{thought}</think>{answer['content']}" if thought else answer["content"]
    ask([ASK, answer, MORE])
    first, second = session.calls
    assert second.parent == first.id
    assert second.fork_reason != "history edited"
    rewarded = Episode(EpisodeKey("train", 1, 0, 0), {}, "rewarded", 1.0, {second.id: 1.0}, calls=session.calls)
    assert TreeCredit(TreeCredit.Settings())(rewarded) == {first.id: 1.0, second.id: 1.0}


def test_half_a_character_in_a_call_comes_back_from_the_agent(ask, backend, session):
    arguments = r'{"expression":  "\ud83d"}'
    backend.says(f'<tool_call>\n{{"name": "calculate", "arguments": {arguments}}}\n</tool_call>', "Yes.", "No.")
    answer = ask([ASK], TOOLS)
    assert answer["tool_calls"][0]["function"]["arguments"] == arguments
    result = {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "error"}
    ask([ASK, answer, result], TOOLS)
    ask([SYSTEM, ASK, answer, result], TOOLS)
    assert session.calls[1].parent == session.calls[0].id
    assert session.calls[1].fork_reason is None
    assert r"\ud83d" in backend.renderer.vocabulary.decode(prompts(backend)[2])


def test_thinking_that_the_agent_changed_is_an_edit(ask, backend, session):
    backend.says("<think>\nMultiply.\n</think>\n\nIt is 408.", "Yes.")
    answer = ask([ASK])
    ask([ASK, answer | {"reasoning_content": "Add."}, MORE])
    assert session.calls[1].fork_reason == "history edited"


def test_after_a_stop_string_the_chain_goes_on_from_what_the_agent_saw(ask, backend, session):
    vocabulary = backend.renderer.vocabulary
    ids = [*vocabulary.encode("It is 408."), *vocabulary.encode(" Obs")]
    backend.script = [backend.chunk(ids, stop_string=" Obs")]
    answer = ask([ASK], stop=" Obs")
    backend.says("Yes.")
    ask([ASK, answer, MORE])
    assert session.calls[1].fork_reason is None
    assert "Obs" not in vocabulary.decode(prompts(backend)[1])
    before, after = prompts(backend)
    shown = before + vocabulary.encode("It is 408.")
    assert after[: len(shown)] == shown


def test_a_stop_string_inside_a_token_is_a_fork_with_its_reason(ask, backend, session):
    vocabulary = backend.renderer.vocabulary
    token = max(range(len(vocabulary.get_vocab())), key=lambda token: len(vocabulary.decode([token]).strip("<|>")))
    text = vocabulary.decode([token])
    backend.script = [backend.chunk([token], stop_string=text[2:])]
    answer = ask([ASK], stop=text[2:])
    assert answer["content"] == text[:2].strip()
    backend.says("Yes.")
    ask([ASK, answer, MORE])
    assert session.calls[1].fork_reason == "a stop string cut the turn inside a token"


def test_a_conversation_that_ends_with_the_assistant_is_rendered_in_full(ask, backend, session):
    backend.says("It is 408.", "Yes.")
    answer = ask([ASK])
    ask([ASK, answer])
    assert session.calls[1].parent == session.calls[0].id
    assert session.calls[1].fork_reason == "nothing new to answer"
