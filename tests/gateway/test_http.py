"""The HTTP server: a thread of its own, limits that it says, and nothing left behind."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.gateway.retries import retry_number
from agentrl.inference.contract import Capabilities

ASK = {"role": "user", "content": "What is 12 * 34?"}


@pytest.fixture
def own_gateway(backend, renderer):
    """A gateway that a test may start and stop."""
    gateway = Gateway(
        EngineCompleter(backend, Capabilities(context_length=512, max_concurrency=8), renderer), body_limit=1000
    )
    yield gateway
    gateway.stop()


def server_threads():
    return [thread for thread in threading.enumerate() if thread.name == "agentrl-gateway"]


def test_start_and_stop_may_be_called_twice_and_leave_no_thread_and_no_port(own_gateway):
    before = len(server_threads())
    own_gateway.start()
    own_gateway.start()
    url = urlsplit(own_gateway.url)
    assert len(server_threads()) == before + 1
    assert url.hostname == "127.0.0.1"
    with socket.create_connection((url.hostname, url.port), timeout=5):
        pass
    own_gateway.stop()
    own_gateway.stop()
    assert len(server_threads()) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((url.hostname, url.port), timeout=5)


def test_a_gateway_works_in_process_without_a_server(own_gateway, backend):
    backend.says("It is 408.")
    session = own_gateway.open_session(SessionSettings(training=True))

    async def agent():
        client = openai.AsyncOpenAI(
            base_url=session.base_url, api_key=session.api_key, http_client=own_gateway.http_client()
        )
        return await client.chat.completions.create(model="x", messages=[ASK])

    assert asyncio.run(agent()).choices[0].message.content == "It is 408."


def test_stopping_ends_calls_under_way_and_closes_every_session(own_gateway, backend):
    own_gateway.start()
    backend.script = ["hang"]
    session = own_gateway.open_session(SessionSettings(training=True))
    failures = []

    def agent():
        with openai.OpenAI(base_url=session.base_url, api_key=session.api_key) as client:
            try:
                client.chat.completions.create(model="x", messages=[ASK])
            except openai.NotFoundError as error:
                failures.append(error.code)

    thread = threading.Thread(target=agent)
    thread.start()
    while not backend.running:
        time.sleep(0.002)
    own_gateway.stop()
    thread.join()
    assert failures == ["session_closed"]
    assert backend.cancelled == 1


def test_an_agent_that_blocks_its_loop_does_not_block_the_server(http, backend, open_session):
    backend.says("It is 408.")
    session = open_session()

    async def agent():
        with openai.OpenAI(base_url=session.base_url, api_key=session.api_key) as client:
            return client.chat.completions.create(model="x", messages=[ASK])

    assert asyncio.run(agent()).choices[0].message.content == "It is 408."


def test_a_body_over_the_limit_is_a_413_that_names_it(own_gateway):
    own_gateway.start()
    session = own_gateway.open_session(SessionSettings(training=True))
    messages = [{"role": "user", "content": "x" * 2000}]
    with (
        openai.OpenAI(base_url=session.base_url, api_key=session.api_key) as client,
        pytest.raises(openai.APIStatusError, match="over the limit of 1000") as error,
    ):
        client.chat.completions.create(model="x", messages=messages)
    assert error.value.status_code == 413


def test_in_process_the_limit_is_the_same(own_gateway):
    session = own_gateway.open_session(SessionSettings(training=True))

    async def post():
        client = own_gateway.http_client()
        return await client.post(f"{session.base_url}/chat/completions", content=b"x" * 2000)

    response = asyncio.run(post())
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(http, backend, open_session):
    session = open_session()
    url = urlsplit(session.base_url)
    with socket.create_connection((url.hostname, url.port), timeout=5) as connection:
        connection.sendall(
            f"POST {url.path}/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
        )
    backend.says("It is 408.")
    body = {"messages": [ASK]}
    response = httpx.post(f"{session.base_url}/chat/completions", json=body, trust_env=False)
    assert response.status_code == 200
    assert len(session.calls) == 1


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat/completions/", "/favicon.ico", "/%00/v1/models"])
def test_a_stranger_learns_nothing_but_that_a_key_is_needed(http, gateway, path):
    response = httpx.get(f"{gateway.url}{path}", trust_env=False)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("header", "number"),
    [("2", 2), (" 1 ", 1), ("", 0), ("9" * 5000, 0), ("-1", 0), ("²", 0), ("1.5", 0), ("٣", 0), ("one", 0)],
)
def test_a_retry_header_that_no_sdk_would_write_counts_as_none(header, number):
    assert retry_number(header) == number
