"""Failures, retries and cancellation: what fails leaves no trace, and what is asked again is one call."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from agentrl.errors import BackendError, PromptTooLong, UnsupportedSampling

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
    assert [exchange.retry for exchange in answered] == [0, 1]
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


def test_a_retry_of_an_answer_that_was_lost_gets_the_same_answer(http, backend, open_session):
    session = open_session()
    backend.says("It is 408.", "It is 409.")

    async def agent():
        async with http.client(session) as client:
            first = await create(client)
            again = await create(client, extra_headers=QUICK)
            other = await create(client)
            return first, again, other

    first, again, other = asyncio.run(agent())
    assert first.id == again.id != other.id
    assert len(session.calls) == 2


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
    monkeypatch.setattr(json, "loads", lambda *_: 1 / 0)

    async def agent():
        async with connection.client(session) as client:
            with monkeypatch.context() as patch:
                patch.setattr("agentrl.gateway.service.json.loads", lambda *_: 1 / 0)
                await create(client)

    with pytest.raises(openai.InternalServerError):
        asyncio.run(agent())
    assert len(answered) == 1
    assert "failed to answer a request" in caplog.text
