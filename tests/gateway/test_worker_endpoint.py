"""An endpoint for a process: its calls belong to the episode that the process runs at that moment."""

from __future__ import annotations

import asyncio

import openai
import pytest

ASK = {"role": "user", "content": "What is 12 * 34?"}


@pytest.fixture
def endpoint(gateway):
    endpoint = gateway.open_worker_endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def call(http, open_session):
    """Calls the model through the endpoint of a worker, as a client made at import time does."""

    def call(endpoint, **options):
        fields = {"base_url": endpoint.base_url, "api_key": endpoint.api_key, "max_retries": 0} | options

        async def create():
            async with openai.AsyncOpenAI(**fields) as client:
                return await client.chat.completions.create(model="x", messages=[ASK])

        return asyncio.run(create())

    return call


def test_calls_go_to_the_session_that_is_attached(call, endpoint, backend, open_session):
    first, second = open_session(), open_session()
    for session in (first, second):
        endpoint.attach(session.api_key)
        backend.says("It is 408.")
        call(endpoint)
        endpoint.detach(session.api_key)
    assert (len(first.calls), len(second.calls)) == (1, 1)


def test_its_key_alone_is_enough_and_so_is_its_url(call, endpoint, gateway, backend, open_session):
    session = open_session()
    endpoint.attach(session.api_key)
    backend.says("It is 408.", "It is 408.")
    call(endpoint, base_url=f"{gateway.url}/v1")
    call(endpoint, api_key="EMPTY")
    assert len(session.calls) == 2


def test_a_sessions_own_url_goes_with_the_endpoints_key(call, endpoint, backend, open_session):
    session, other = open_session(), open_session()
    endpoint.attach(session.api_key)
    endpoint.attach(other.api_key)
    backend.says("It is 408.")
    call(endpoint, base_url=session.base_url)
    assert len(session.calls) == 1


def test_the_key_of_a_session_that_is_not_attached_does_not_fit(call, endpoint, open_session):
    session, other = open_session(), open_session()
    endpoint.attach(session.api_key)
    with pytest.raises(openai.AuthenticationError, match="use the base_url and api_key of one episode together"):
        call(endpoint, api_key=other.api_key)


def test_between_episodes_there_is_nobody_to_call_for(call, endpoint, open_session):
    session = open_session()
    endpoint.attach(session.api_key)
    endpoint.detach(session.api_key)
    endpoint.detach(session.api_key)
    with pytest.raises(openai.NotFoundError, match="no episode runs in the process"):
        call(endpoint)
    assert session.calls == ()


def test_among_several_episodes_it_cannot_choose(call, endpoint, open_session):
    sessions = [open_session(), open_session()]
    for session in sessions:
        endpoint.attach(session.api_key)
    with pytest.raises(openai.ConflictError, match=r"rollout\.episodes_per_worker=1"):
        call(endpoint)
    assert [session.calls for session in sessions] == [(), ()]


def test_a_session_that_closed_while_attached_says_so(call, endpoint, open_session):
    session = open_session()
    endpoint.attach(session.api_key)
    session.close()
    with pytest.raises(openai.NotFoundError, match=f"session {session.id} is closed"):
        call(endpoint)


def test_a_closed_endpoint_opens_nothing(call, endpoint, open_session):
    endpoint.attach(open_session().api_key)
    endpoint.close()
    with pytest.raises(openai.AuthenticationError, match="no session has the base URL"):
        call(endpoint)


def test_a_guessed_token_or_key_opens_nothing(call, endpoint, gateway, open_session):
    endpoint.attach(open_session().api_key)
    guess = "x" * 43
    with pytest.raises(openai.AuthenticationError):
        call(endpoint, base_url=f"{gateway.url}/capture-{endpoint.id}-{guess}/v1", api_key="EMPTY")
    with pytest.raises(openai.AuthenticationError):
        call(endpoint, base_url=f"{gateway.url}/v1", api_key=f"sk-agentrl-{endpoint.id}-{guess}")
