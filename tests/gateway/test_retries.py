"""Failures, retries and cancellation: what fails leaves no trace, and what is asked again is one call."""

from __future__ import annotations

import asyncio
import json
import socket
from functools import partial

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import BackendError, PromptTooLong, UnsupportedSampling
from agentrl.gateway.contract import Exchange, Reply
from agentrl.gateway.retries import RETRY_HEADER, Attempt, Retries, retry_number

ASK = {"role": "user", "content": "What is 12 * 34?"}
QUICK = {"x-stainless-retry-count": "1"}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """The SDK waits half a second before its first retry."""
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.001)


def create(client, **request):
    return client.chat.completions.create(**({"model": "x", "messages": [ASK]} | request))


def untouched(session):
    return not session.calls and not session.tree.spans and not session.in_flight


def test_a_backend_that_fails_once_is_asked_again_and_recorded_once(connection, backend, open_session, answered):
    backend.script = [BackendError("out of memory")]
    backend.says("It is 408.")
    session = open_session()

    async def agent():
        async with connection.client(session) as client:
            return await create(client)

    assert asyncio.run(agent()).choices[0].message.content == "It is 408."
    assert [retry_number(exchange.headers[RETRY_HEADER]) for exchange in answered] == [0, 1]
    assert len(session.calls) == 1
    assert backend.requests[0].sampling.seed == backend.requests[1].sampling.seed
    assert [error.side for error in session.refusals] == ["backend"]


def test_a_backend_that_keeps_failing_is_a_503(connection, backend, open_session, answered):
    backend.script = [RuntimeError("bug")] * 3
    session = open_session()

    async def agent():
        async with connection.client(session) as client:
            await create(client)

    with pytest.raises(openai.InternalServerError, match="RuntimeError: bug") as error:
        asyncio.run(agent())
    assert error.value.status_code == 503
    assert len(answered) == 3
    assert untouched(session)


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (PromptTooLong("18 tokens do not fit into 16"), "context_length_exceeded"),
        (UnsupportedSampling("no top_k here"), "unsupported_value"),
    ],
)
def test_what_the_backend_refuses_is_refused_once(connection, backend, open_session, answered, failure, code):
    backend.script = [failure]
    session = open_session()

    async def agent():
        async with connection.client(session) as client:
            await create(client)

    with pytest.raises(openai.BadRequestError) as error:
        asyncio.run(agent())
    assert error.value.code == code
    assert len(answered) == 1
    assert [refusal.side for refusal in session.refusals] == ["gateway"]
    assert untouched(session)


@pytest.mark.parametrize("finish", [None, "cancelled"])
def test_a_completion_that_was_not_finished_is_not_recorded(connection, backend, open_session, finish):
    backend.script = [backend.chunk([5, 6], finish=finish)]
    session = open_session()

    async def agent():
        async with connection.client(session, max_retries=0) as client:
            await create(client)

    with pytest.raises(openai.InternalServerError):
        asyncio.run(agent())
    assert untouched(session)


def test_a_client_that_gives_up_waiting_frees_its_slot(connection, backend, open_session):
    backend.script = ["hang"]
    session = open_session()

    async def agent():
        async with connection.client(session, timeout=0.2, max_retries=0) as client:
            with pytest.raises(openai.APITimeoutError):
                await create(client)
        await settled(backend)

    asyncio.run(agent())
    assert (backend.cancelled, backend.running) == (1, 0)
    assert untouched(session)


async def until(condition):
    """Over HTTP the server hears of things a moment later, on a thread of its own."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def settled(backend):
    """Until nothing runs."""
    await until(lambda: not backend.running)


async def started(backend):
    """Until something runs."""
    await until(lambda: backend.running)


def test_a_timeout_is_retried_by_the_sdk_and_is_one_call(connection, backend, open_session):
    backend.script = ["hang"]
    backend.says("It is 408.")
    session = open_session()

    async def agent():
        async with connection.client(session, timeout=0.3) as client:
            completion = await create(client)
        await settled(backend)
        return completion

    assert asyncio.run(agent()).id == session.calls[0].id
    assert len(session.calls) == 1


def test_a_cancelled_agent_cancels_its_call(connection, backend, open_session):
    backend.script = ["hang"]
    session = open_session()

    async def agent():
        async with connection.client(session) as client:
            task = asyncio.ensure_future(create(client))
            await started(backend)
            assert session.in_flight == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await settled(backend)

    asyncio.run(agent())
    assert backend.cancelled == 1
    assert untouched(session)


def test_a_retry_of_a_call_under_way_waits_for_it(http, backend, open_session):
    session = open_session()

    async def agent():
        async with http.client(session) as client:
            backend.script = ["hang"]
            first = asyncio.ensure_future(create(client))
            await started(backend)
            backend.says("It is 408.")
            retry = asyncio.ensure_future(create(client, extra_headers=QUICK))
            await asyncio.sleep(0.05)
            assert len(backend.requests) == 1
            first.cancel()  # Its client has gone: the retry makes the call anew.
            return await retry

    assert asyncio.run(agent()).id == session.calls[0].id
    assert len(session.calls) == 1
    assert backend.requests[0].sampling.seed == backend.requests[1].sampling.seed


def ask(gateway, session, retry=0, text="What is 12 * 34?"):
    """A request as an SDK sends it for the ``retry``th time; ``lost`` of its reply says that the client had gone."""
    body = json.dumps({"model": "x", "messages": [{"role": "user", "content": text}]}).encode()
    exchange = Exchange(
        "POST", "/v1/chat/completions", body, {"authorization": f"Bearer {session.api_key}", RETRY_HEADER: str(retry)}
    )
    return asyncio.run(gateway.answer(exchange))


def id_of(reply):
    return json.loads(reply.body)["id"]


def test_a_retry_of_an_answer_that_was_lost_gets_the_same_answer(gateway, backend, open_session):
    session = open_session()
    backend.says("It is 408.", "It is 409.")
    first = ask(gateway, session)
    first.lost()
    again, other = ask(gateway, session, 1), ask(gateway, session)
    assert id_of(first) == id_of(again) != id_of(other)
    assert len(session.calls) == 2


@pytest.mark.parametrize("lost", [True, False])
def test_a_failure_an_answer_and_a_marked_retry_are_one_call(gateway, backend, open_session, lost):
    session = open_session()
    backend.script.append(BackendError("out of memory"))
    backend.says("It is 408.")
    assert ask(gateway, session).status == 503
    second = ask(gateway, session, 1)
    if lost:
        second.lost()
    third = ask(gateway, session, 2)
    assert id_of(second) == id_of(third)
    assert [(call.id, call.delivered) for call in session.calls] == [(id_of(third), True)]


def test_a_sample_that_failed_to_connect_at_first_does_not_get_anothers_answer(http, backend, open_session):
    """Its retry is the first that anybody sees of it, and marked."""
    session = open_session()
    backend.says("It is 408.", "It is 409.")

    class FailsAtFirst(httpx2.AsyncHTTPTransport):
        failed = False

        async def handle_async_request(self, request):
            if not self.failed:
                self.failed = True
                raise httpx2.ConnectError("refused", request=request)
            return await super().handle_async_request(request)

    async def agent():
        async with http.client(session) as client:
            first = await create(client)
        other = httpx2.AsyncClient(transport=FailsAtFirst())
        async with http.client(session, http_client=other) as client:
            return first, await create(client)

    first, second = asyncio.run(agent())
    assert (first.choices[0].message.content, second.choices[0].message.content) == ("It is 408.", "It is 409.")
    assert [call.id for call in session.calls] == [first.id, second.id]


@pytest.mark.parametrize("body_changes", [True, False])
def test_a_retry_of_what_was_never_seen_is_a_call_of_its_own(gateway, backend, open_session, body_changes):
    session = open_session()
    backend.says("It is 408.", "It is 409.")
    first = ask(gateway, session)
    first.lost()
    second = ask(gateway, session, 1, text="And 12 * 35?") if body_changes else ask(gateway, session, 2)
    assert id_of(first) != id_of(second)


@pytest.mark.parametrize("header", ["9" * 5000, "-1", "one", "1.5", ""])
def test_a_retry_header_that_no_sdk_writes_marks_nothing(connection, backend, open_session, header):
    session = open_session()
    backend.says("It is 408.", "It is 409.")

    async def agent():
        async with connection.client(session, max_retries=0) as client:
            headers = {"x-stainless-retry-count": header.encode()}
            return [await create(client, extra_headers=headers) for _ in range(2)]

    assert len({completion.id for completion in asyncio.run(agent())}) == 2


def test_a_client_that_still_waits_has_not_tried_again():
    """So what looks like its retry is another's, which was not seen before."""
    retries, body = Retries(), b"the same"
    first = retries.take(Exchange("POST", "/", body))
    waiting = retries.take(Exchange("POST", "/", body, {RETRY_HEADER: "1"}))
    assert not waiting.done()
    reply = retries.succeed(first, Reply(200, b"first"), lambda arrived: None)
    assert waiting.result() is True
    other = retries.take(Exchange("POST", "/", body, {RETRY_HEADER: "1"}))
    assert isinstance(other, Attempt)
    assert other is not first
    reply.lost()
    assert retries.take(Exchange("POST", "/", body, {RETRY_HEADER: "1"})).body == b"first"


def test_of_several_who_wait_for_an_attempt_that_fails_one_makes_it():
    retries, body = Retries(), b"the same"
    first = retries.take(Exchange("POST", "/", body))
    waiting = [retries.take(Exchange("POST", "/", body, {RETRY_HEADER: "1"})) for _ in range(2)]
    retries.fail(first)
    assert [ended.result() for ended in waiting] == [False, False]
    taken = [retries.take(Exchange("POST", "/", body, {RETRY_HEADER: "1"})) for _ in range(2)]
    assert taken[0] is first
    assert taken[1] is not first


CLIENTS = st.lists(
    st.tuples(st.booleans(), st.lists(st.sampled_from(["failed", "lost"]), max_size=3), st.booleans()),
    min_size=1,
    max_size=5,
)
"""Of each client whether its first attempt came to nothing before it was here, what became of the next ones, and
whether it gives up then or has an answer at last."""


@given(CLIENTS, st.data())
def test_every_client_has_an_answer_of_its_own_however_often_they_all_try(clients, data):
    retries, made, got, delivered = Retries(), [], [], {}
    turns = [index for index, (_, ends, _) in enumerate(clients) for _ in range(len(ends) + 1)]
    ends = [[*ends, "given up" if gives_up else "arrived"] for _, ends, gives_up in clients]
    number = [int(unseen) for unseen, _, _ in clients]
    for index in data.draw(st.permutations(turns)):
        end = ends[index].pop(0)
        if end == "given up":
            continue
        taken = retries.take(Exchange("POST", "/", b"the same", {RETRY_HEADER: str(number[index])}))
        number[index] += 1
        if isinstance(taken, Attempt) and end == "failed":
            retries.fail(taken)
            continue
        if isinstance(taken, Attempt):
            made.append(f"{len(made)}".encode())
            delivered[made[-1]] = True
            taken = retries.succeed(taken, Reply(200, made[-1]), partial(delivered.__setitem__, made[-1]))
        if end == "lost":
            taken.lost()
        else:  # Where the answer to an earlier attempt is given, none can fail.
            got.append(taken.body)
            ends[index] = ["given up"] * len(ends[index])
    assert len(set(got)) == len(got)
    assert {answer for answer, arrived in delivered.items() if arrived} == set(got)
    if len(clients) == 1 and not clients[0][0]:
        assert len(made) <= 1, "attempts of one client, all seen, are one call"


def test_a_lost_answer_is_continued_only_where_none_like_it_arrived(gateway, backend, open_session):
    session = open_session()
    backend.says("It is 408.", "It is 408.", "Yes.")
    lost, arrived = ask(gateway, session), ask(gateway, session)
    lost.lost()
    answer = json.loads(arrived.body)["choices"][0]["message"]
    messages = [ASK, answer, {"role": "user", "content": "Sure?"}]
    body = json.dumps({"model": "x", "messages": messages}).encode()
    asyncio.run(
        gateway.answer(Exchange("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {session.api_key}"}))
    )
    assert [call.delivered for call in session.calls] == [False, True, True]
    assert session.calls[2].parent == id_of(arrived)


def test_that_an_answer_was_lost_may_be_known_after_the_session_has_closed(gateway, backend, open_session):
    session = open_session()
    backend.says("It is 408.")
    reply = ask(gateway, session)
    session.close()
    reply.lost()
    assert [call.delivered for call in session.calls] == [False]


def test_equal_requests_that_are_no_retries_are_samples_of_their_own(connection, backend, open_session):
    session = open_session()
    backend.says(*["It is 408."] * 4)

    async def agent():
        async with connection.client(session) as client:
            return await asyncio.gather(*(create(client) for _ in range(4)))

    assert len({completion.id for completion in asyncio.run(agent())}) == 4
    assert len({request.sampling.seed for request in backend.requests}) == 4
    assert len([span for span in session.tree.spans if span.sampled]) == 4


def test_a_retry_of_a_failed_sample_does_not_get_anothers_answer(http, backend, open_session):
    session = open_session()
    backend.says("It is 408.")
    backend.script.append(BackendError("out of memory"))
    backend.says("It is 409.")

    async def agent():
        async with http.client(session) as client:
            return [(await create(client)).choices[0].message.content for _ in range(2)]

    assert asyncio.run(agent()) == ["It is 408.", "It is 409."]


def test_closing_a_session_refuses_its_calls_under_way(connection, backend, open_session):
    backend.script = ["hang"]
    session = open_session()

    async def agent():
        async with connection.client(session) as client:
            task = asyncio.ensure_future(create(client))
            await started(backend)
            await asyncio.to_thread(session.close)
            with pytest.raises(openai.NotFoundError, match="is closed: its episode has ended") as error:
                await task
            assert error.value.code == "session_closed"
            assert asyncio.current_task().cancelling() == 0
            await settled(backend)

    asyncio.run(agent())
    assert backend.cancelled == 1
    assert untouched(session)


def test_a_late_call_is_told_that_its_session_has_closed(connection, open_session, answered):
    session = open_session()
    session.close()
    session.close()

    async def agent():
        async with connection.client(session) as client:
            await create(client)

    with pytest.raises(openai.NotFoundError, match=rf"session {session.id} is closed"):
        asyncio.run(agent())
    assert len(answered) == 1


def test_a_fault_of_the_gateway_itself_is_a_500_that_is_not_retried(
    connection, backend, open_session, answered, monkeypatch, caplog
):
    backend.says("It is 408.")
    session = open_session()

    async def agent():
        async with connection.client(session) as client:
            with monkeypatch.context() as patch:
                patch.setattr("agentrl.gateway.gateway.read_json", lambda *_: 1 / 0)
                await create(client)

    with pytest.raises(openai.InternalServerError):
        asyncio.run(agent())
    assert len(answered) == 1
    assert "failed to answer a request" in caplog.text


def test_a_client_that_leaves_its_answer_unread_can_ask_for_it_again(gateway, backend, open_session):
    session = open_session()
    backend.says("It is 408.")
    body = json.dumps({"messages": [ASK]}).encode()
    url = httpx2.URL(session.base_url)
    with socket.create_connection((url.host, url.port), timeout=20) as left:
        head = f"POST {url.path}/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        left.sendall(head.encode() + body)
        left.recv(10)
    asyncio.run(until(lambda: [call.delivered for call in session.calls] == [False]))
    again = httpx2.post(f"{session.base_url}/chat/completions", content=body, headers=QUICK, trust_env=False)
    assert again.json()["id"] == session.calls[0].id
    assert [call.delivered for call in session.calls] == [True]


def test_a_call_that_is_cancelled_at_any_moment_is_delivered_or_leaves_nothing(in_process, backend, open_session):
    """Where the agent's task ends before it has the answer, no later moment gives it to anybody."""

    async def agent(session, moments):
        async with in_process.client(session, max_retries=0) as client:
            task = asyncio.ensure_future(create(client))
            for _ in range(moments):
                await asyncio.sleep(0)
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            return outcome

    delivered = []
    for moments in range(40):
        backend.script.clear()
        backend.says("It is 408.")
        session = open_session()
        outcome = asyncio.run(agent(session, moments))
        delivered.append(not isinstance(outcome, BaseException))
        assert [call.id for call in session.calls if call.delivered] == ([outcome.id] if delivered[-1] else [])
        session.close()
    assert set(delivered) == {True, False}
