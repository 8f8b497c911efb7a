"""Prompts without messages: completed as they are, and recorded as what they continue."""

from __future__ import annotations

import asyncio

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gateway.conftest import CONTEXT, Connection, ScriptedBackend
from tests.gateway.test_streaming import SteppedBackend

from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.gateway.conversations import Turn
from agentrl.gateway.prompts import Prompts
from agentrl.inference.contract import Capabilities

PROMPT = "What is 12 * 34? It is"


def call(connection, session, **request):
    async def create():
        async with connection.client(session, max_retries=0) as client:
            answer = await client.completions.create(**({"model": "x", "prompt": PROMPT} | request))
            return [chunk async for chunk in answer] if request.get("stream") else answer

    return asyncio.run(create())


def test_a_text_goes_on_as_it_is(connection, backend, open_session):
    backend.says(" 408.")
    session = open_session(model="policy")
    answer = call(connection, session)
    assert (answer.object, answer.model, answer.choices[0].text) == ("text_completion", "policy", " 408.")
    assert (answer.choices[0].finish_reason, answer.choices[0].logprobs) == ("stop", None)
    (request,) = backend.requests
    assert list(request.prompt_ids) == backend.renderer.vocabulary.encode(PROMPT)
    assert request.sampling.max_tokens == 16
    (recorded,) = session.calls
    assert (recorded.id, recorded.message) == (answer.id, {"role": "assistant", "content": " 408."})
    assert answer.usage.prompt_tokens == len(request.prompt_ids)
    assert answer.usage.completion_tokens == recorded.completion_tokens


def test_what_looks_like_thinking_or_a_call_is_text(connection, backend, open_session):
    text = '<think>Hm.</think><tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    backend.says(text)
    assert call(connection, open_session()).choices[0].text == text


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_goes_on_from_an_answer_keeps_the_ids_that_were_sampled(
    connection, backend, open_session, stream
):
    session = open_session()
    *written, end = backend.spells(" 408.")
    backend.says(" Yes.")
    call(connection, session, stream=stream)
    call(connection, session, prompt=f"{PROMPT} 408. Sure?")
    before, after = (list(request.prompt_ids) for request in backend.requests)
    assert after[: len(before) + len(written)] == before + written
    assert backend.renderer.vocabulary.decode(after) == f"{PROMPT} 408. Sure?"
    first, second = session.calls
    assert (second.parent, second.fork_reason) == (first.id, None)
    assert next(span.ids for span in session.tree.spans if span.sampled) == (*written, end)
    assert session.tree.spans[2].parent == 1, "the question follows what was sampled"
    assert session.tree.spans[2].fork == len(written), "and not the token that ended it, which nobody was shown"


def test_ids_go_on_from_ids(connection, backend, open_session):
    session, vocabulary = open_session(), backend.renderer.vocabulary
    ids = vocabulary.encode(PROMPT)
    backend.script = [backend.chunk(vocabulary.encode(" 408"), finish="length")]
    backend.says(".")
    first = call(connection, session, prompt=ids, extra_body={"return_token_ids": True}).choices[0]
    assert first.prompt_token_ids == ids
    more = [*ids, *first.token_ids, *vocabulary.encode(" Sure?")]
    call(connection, session, prompt=more)
    assert [list(request.prompt_ids) for request in backend.requests] == [ids, more]
    assert session.calls[1].parent == session.calls[0].id
    assert len(session.tree) == len(more) + session.calls[1].completion_tokens


def test_a_text_goes_on_from_ids(connection, backend, open_session):
    session, vocabulary = open_session(), backend.renderer.vocabulary
    *written, _ = backend.spells(" 408.")
    backend.says("Yes.")
    call(connection, session, prompt=vocabulary.encode(PROMPT))
    call(connection, session, prompt=f"{PROMPT} 408. Sure?")
    assert list(backend.requests[1].prompt_ids)[len(vocabulary.encode(PROMPT)) :][: len(written)] == written


def test_several_prompts_and_choices_are_calls_of_their_own(connection, backend, open_session):
    session = open_session()
    for stream in (False, True):
        backend.says(" 1", " 2", " 3", " 4")
        answer = call(connection, session, prompt=["One", "Two"], n=2, stream=stream)
        chunks = answer if stream else [answer]
        texts = ["", "", "", ""]
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert sorted(texts) == [" 1", " 2", " 3", " 4"]
        name = chunks[0].id
        calls = {made.id: made for made in session.calls[-4:]}
        assert set(calls) == {name, f"{name}-1", f"{name}-2", f"{name}-3"}
        prompts = [calls[each].prompt_tokens for each in (name, f"{name}-1", f"{name}-2", f"{name}-3")]
        assert prompts[0] == prompts[1]
        assert prompts[2] == prompts[3]
        if not stream:
            assert answer.usage.prompt_tokens == prompts[0] + prompts[2]
    assert [made.message["content"] for made in session.calls[:4]] != []


def test_a_stream_comes_to_the_text_and_ends_with_its_usage(connection, backend, open_session):
    backend.says(" 408.")
    session = open_session()
    chunks = call(connection, session, stream=True, echo=True, stream_options={"include_usage": True})
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == f"{PROMPT} 408."
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], session.calls[0].completion_tokens)
    assert {chunk.id for chunk in chunks} == {session.calls[0].id}


def test_the_first_text_leaves_with_the_first_tokens(renderer):
    vocabulary = renderer.vocabulary
    backend = SteppedBackend([*vocabulary.encode(" 408. That is it."), next(iter(renderer.stop_ids))])
    gateway = Gateway(EngineCompleter(backend, Capabilities(CONTEXT, 8), renderer))
    session = gateway.open_session(SessionSettings(training=True))

    async def read():
        async with Connection(gateway, httpx2, in_process=True).client(session, max_retries=0) as client:
            backend.allowed = 2
            stream = aiter(await client.completions.create(model="x", prompt=PROMPT, stream=True))
            early = (await anext(stream)).choices[0].text
            assert session.in_flight == 1
            backend.allowed = 100
            return early, [chunk.choices[0].text async for chunk in stream]

    early, late = asyncio.run(read())
    gateway.stop()
    assert early
    assert "".join([early, *late]) == " 408. That is it."


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_the_prompt_is_repeated_where_that_is_asked_for(connection, backend, open_session, as_ids, stream):
    backend.says(" 408.")
    prompt = backend.renderer.vocabulary.encode(PROMPT) if as_ids else PROMPT
    answer = call(connection, open_session(), prompt=prompt, echo=True, stream=stream)
    chunks = answer if stream else [answer]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == f"{PROMPT} 408."


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_have_the_shape_of_this_api(connection, backend, open_session, stream):
    ids = backend.renderer.vocabulary.encode(" 408.")
    backend.script = [backend.chunk(ids, top_logprobs=tuple(((token, -0.5), (7, -2.0)) for token in ids))]
    answer = call(connection, open_session(), logprobs=2, stream=stream)
    told = [choice.logprobs for chunk in (answer if stream else [answer]) for choice in chunk.choices]
    told = next(each for each in told if each is not None)
    assert "".join(told.tokens) == " 408."
    assert told.token_logprobs == [-0.01 * (n + 1) for n in range(len(ids))]
    assert told.text_offset == [sum(map(len, told.tokens[:n])) for n in range(len(ids))]
    assert [top[token] for top, token in zip(told.top_logprobs, told.tokens, strict=True)] == [-0.5] * len(ids)
    assert backend.requests[0].sampling.top_logprobs == 2


def test_text_before_a_stop_string_is_what_is_shown_and_continued(connection, backend, open_session):
    session, vocabulary = open_session(), backend.renderer.vocabulary
    ids = vocabulary.encode(" 408.\nObs: none")
    backend.script = [backend.chunk(ids, stop_string="\nObs")]
    backend.says("Yes.")
    assert call(connection, session, stop="\nObs").choices[0].text == " 408."
    call(connection, session, prompt=f"{PROMPT} 408.\nSure?")
    assert session.calls[1].parent == session.calls[0].id
    assert vocabulary.decode(list(backend.requests[1].prompt_ids)) == f"{PROMPT} 408.\nSure?"


def test_the_same_prompt_again_is_no_continuation(connection, backend, open_session):
    session = open_session()
    backend.says("", " 408.")
    call(connection, session)
    call(connection, session)
    assert [made.parent for made in session.calls] == [None, None]


def test_equal_prompts_are_samples_of_their_own(connection, backend, open_session):
    session = open_session(seed_key=(1,))
    backend.says(" 408.", " 408.", " 408.", " 408.")
    call(connection, session)
    call(connection, session)
    call(connection, session, n=2, seed=3)
    assert len({request.sampling.seed for request in backend.requests}) == 4
    assert len([span for span in session.tree.spans if span.sampled]) == 4


@pytest.mark.parametrize(
    ("request_", "param", "says"),
    [
        ({"suffix": "."}, "suffix", "rollout.override: {suffix: null}"),
        ({"best_of": 3}, "best_of", "is not n=1"),
        ({"echo": True, "logprobs": 1}, "echo", "of the prompt"),
        ({"prompt": []}, "prompt", "neither a text nor token ids"),
        ({"prompt": ""}, "prompt", "holds no token"),
        ({"prompt": [1, "x"]}, "prompt", "neither a text nor token ids"),
        ({"prompt": [True]}, "prompt", "neither a text nor token ids"),
        ({"prompt": [-1]}, "prompt", "neither a text nor token ids"),
        ({"prompt": ["x"] * 65, "n": 2}, "prompt", "comes to 130 choices"),
        ({"prompt": "x " * 2000}, "prompt", "the prompt comes to"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"logprobs": True}, "logprobs", "whole number from 0"),
        ({"top_p": 0.5}, "top_p", "rollout.override"),
        ({"temperature": 0}, "temperature", "rollout.override.temperature"),
        ({"extra_body": {"messages": []}}, "messages", "is not a field"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "set stream: true"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_honoured_is_refused_and_leaves_nothing(
    in_process, backend, open_session, request_, param, says
):
    session = open_session()
    with pytest.raises(openai.BadRequestError) as error:
        call(in_process, session, **request_)
    assert error.value.param == param
    assert says in error.value.message
    assert (session.calls, len(session.tree), backend.requests) == ((), 0, [])


def test_what_changes_nothing_is_accepted(in_process, backend, open_session):
    backend.says(" 408.")
    request = {"suffix": "", "best_of": 1, "user": "u", "echo": False, "logit_bias": {}, "top_p": 1}
    assert call(in_process, open_session(), **request).choices[0].text == " 408."


def test_an_id_that_the_model_does_not_know_is_refused(renderer):
    backend = ScriptedBackend(renderer)
    gateway = Gateway(EngineCompleter(backend, Capabilities(CONTEXT, 8), renderer, vocabulary=10))
    with pytest.raises(openai.BadRequestError, match="its ids go from 0 to 9") as error:
        call(
            Connection(gateway, httpx2, in_process=True),
            gateway.open_session(SessionSettings(training=True)),
            prompt=[10],
        )
    assert error.value.param == "prompt"
    gateway.stop()


TEXTS = st.text(alphabet="ab é\n<", max_size=6)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 5), TEXTS, TEXTS, st.booleans()), min_size=1, max_size=8))
def test_whatever_goes_on_from_whatever_the_tree_holds_what_the_engine_was_given(in_process, backend, steps):
    """Prompts go on from earlier answers, from the middle of them, or from nothing; answers are split at random."""
    session = in_process.gateway.open_session(SessionSettings(training=True))
    vocabulary = backend.renderer.vocabulary
    backend.requests.clear()
    said, known = [], [""]
    for base, more, answer, cut in steps:
        prompt = f"{known[base % len(known)]}{more}" or "a"
        ids = [token for char in answer for token in vocabulary.encode(char)]
        ids = ids if cut and ids else [*ids, backend.end]
        backend.script = [backend.chunk(ids, finish="length" if cut and ids[-1] != backend.end else "stop")]
        text = call(in_process, session, prompt=prompt).choices[0].text
        assert text == answer
        assert vocabulary.decode(list(backend.requests[-1].prompt_ids)) == prompt
        said.append(tuple(ids))
        known += [prompt + text, prompt + text[: len(text) // 2]]
    sampled = [span for span in session.tree.spans if span.sampled]
    assert [span.ids for span in sampled] == said
    assert [span.sampled.call for span in sampled] == [made.id for made in session.calls]
    for request in backend.requests:
        assert session.tree.walk(request.prompt_ids)[1] == len(request.prompt_ids)
    session.close()


def test_an_override_of_fields_that_prompts_have_not_is_left_out(in_process, backend, open_session):
    backend.says(" 408.")
    session = open_session(override={"max_tokens": 4, "tool_choice": "none", "response_format": None, "logprobs": True})
    call(in_process, session)
    assert backend.requests[0].sampling.max_tokens == 4


def _turn(name: str) -> Turn:
    return Turn(name, name.encode(), 1, False, {}, ())


@settings(deadline=None)
@given(st.lists(st.text(alphabet="aé\ud800", max_size=6), unique=True, max_size=12), st.text(alphabet="aé\ud800"))
def test_the_longest_beginning_of_a_prompt_is_found(texts, prompt):
    prompts = Prompts()
    for text in texts:
        prompts.add(text, [ord(char) for char in text], _turn(repr(text)))
    beginnings = [text for text in texts if prompt.startswith(text)]
    longest = max(beginnings, key=len, default=None)
    for given_prompt in (prompt, [ord(char) for char in prompt]):
        turn, known = prompts.find(given_prompt)
        assert (turn and turn.call) == (None if longest is None else repr(longest))
        assert known == len(longest or "")
