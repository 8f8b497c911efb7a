"""What a session keeps grows with what was said in it, not with how often an agent has sent it."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import traceback
import tracemalloc

import pytest

from agentrl.gateway import Gateway, RelayCompleter, SessionSettings
from agentrl.gateway.bodies import Bodies
from agentrl.gateway.contract import Exchange
from agentrl.inference.contract import Capabilities, ChatCompletion

TOOLS = [{"type": "function", "function": {"name": "calculate", "parameters": {"type": "object"}}}]
CALL = '<tool_call>\n{"name": "calculate", "arguments": {"n": %d}}\n</tool_call>'


class Parrot:
    """An endpoint that always says the same."""

    async def complete(self, request):
        message = {"role": "assistant", "content": f"It is {len(request.body['messages'])}."}
        answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        return ChatCompletion(answer, message, "stop", 9, 1)


def converse(gateway, backend, turns, *, tools, edits=False):
    """A conversation of so many turns; the open session."""
    session = gateway.open_session(SessionSettings(training=True))

    async def agent():
        messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "Go."}]
        for turn in range(turns):
            if backend is not None:
                backend.says(CALL % turn if tools else f"It is {turn}.")
            body = {"model": "x", "messages": messages, "user": f"someone {turn}"} | ({"tools": TOOLS} if tools else {})
            exchange = Exchange(
                "POST",
                "/v1/chat/completions",
                json.dumps(body).encode(),
                {"authorization": f"Bearer {session.api_key}"},
            )
            reply = await gateway.answer(exchange)
            assert reply.status == 200, reply.body
            if backend is not None:
                backend.requests.clear()
            answer = json.loads(reply.body)["choices"][0]["message"]
            calls = answer.get("tool_calls") or []
            if edits:
                answer = {"role": "assistant", "content": f"Something else, {turn}."}
            results = [{"role": "tool", "tool_call_id": call["id"], "content": f"{turn}"} for call in calls]
            messages = [*messages, answer, *(results or [{"role": "user", "content": f"Go on, {turn}."}])]

    asyncio.run(agent())
    return session


def kept(*conversation, **how):
    """Bytes that a session of such a conversation takes."""
    gc.collect()
    tracemalloc.start(1)
    try:
        session = converse(*conversation, **how)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    session.close()
    return size


@pytest.mark.parametrize("how", [{"tools": True}, {"tools": False, "edits": True}], ids=str)
def test_a_session_of_four_times_the_turns_takes_no_more_than_four_times_the_memory(served, backend, monkeypatch, how):
    monkeypatch.setattr(served.completer, "capabilities", Capabilities(2**20, 8))
    converse(served, backend, 3, **how)
    few, many = (kept(served, backend, turns, **how) for turns in (6, 24))
    assert many <= 4 * few, f"{few} and {many} bytes"


@pytest.mark.parametrize("failure", ["refused", "backend"])
def test_so_does_one_whose_calls_are_refused_and_the_errors_still_say_where_they_come_from(served, backend, failure):
    def kept_of_refusals(turns):
        gc.collect()
        tracemalloc.start(1)
        session = served.open_session(SessionSettings(training=True))

        async def agent():
            for turn in range(turns):
                said = [{"role": "user", "content": f"Go on, {each}."} for each in range(turn + 1)]
                messages = [{"role": "assistant", "content": "It is 1."}, *said]
                body = {"messages": messages} | ({"top_p": 0.5} if failure == "refused" else {})
                backend.script[:] = [ValueError("out of memory")]
                exchange = Exchange(
                    "POST",
                    "/v1/chat/completions",
                    json.dumps(body).encode(),
                    {"authorization": f"Bearer {session.api_key}"},
                )
                assert (await served.answer(exchange)).status == (400 if failure == "refused" else 503)
                backend.requests.clear()

        asyncio.run(agent())
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(session.refusals) == turns
        innermost = session.refusals[-1].__cause__ or session.refusals[-1]
        place = traceback.extract_tb(innermost.__traceback__)[-1]
        assert place.name == ("_check_reshaping" if failure == "refused" else "generate")
        session.close()
        return size

    kept_of_refusals(2)
    few, many = kept_of_refusals(6), kept_of_refusals(24)
    assert many <= 4 * few, f"{few} and {many} bytes"


def test_so_does_one_that_is_passed_on_to_an_endpoint():
    gateway = Gateway(RelayCompleter(Parrot()))
    converse(gateway, None, 3, tools=True)
    few, many = (kept(gateway, None, turns, tools=True) for turns in (6, 24))
    gateway.stop()
    assert many <= 4 * few, f"{few} and {many} bytes"


def test_every_request_is_kept_as_it_came(served, backend):
    session = converse(served, backend, 8, tools=True)
    lengths = [len(call.request["messages"]) for call in session.calls]
    assert lengths == [2 + 2 * turn for turn in range(8)]
    assert [call.request["user"] for call in session.calls] == [f"someone {turn}" for turn in range(8)]
    last = session.calls[-1].request
    assert last["messages"][:-2] == session.calls[-2].request["messages"]
    assert last["tools"] == TOOLS
    assert list(last) == ["model", "messages", "user", "tools"]
    for plain in (copy.deepcopy(last), pickle.loads(pickle.dumps(last))):
        assert plain == last
        assert json.loads(json.dumps(plain)) == plain


def test_values_that_are_equal_to_python_alone_are_kept_apart():
    bodies = Bodies()
    written = [json.dumps({"messages": [{"n": value}, {"a": 1}]}) for value in (1, 1.0, True, None, "1", [1], {})]
    kept_bodies = [bodies.keep(json.loads(text)) for text in written]
    assert [json.dumps(dict(body)) for body in kept_bodies] == written
