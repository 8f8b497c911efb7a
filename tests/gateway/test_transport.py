"""The in-process client: shared by all, closed by nobody, and like any other towards the rest of the world."""

from __future__ import annotations

import asyncio
import importlib.metadata
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import httpx2
import openai
import pytest

from agentrl.clients import client_library

ASK = {"role": "user", "content": "What is 12 * 34?"}


def create(client, **request):
    return client.chat.completions.create(model="x", messages=[ASK], **request)


def test_the_client_is_of_the_kind_that_the_installed_openai_makes_itself(open_session):
    own = openai.DefaultAsyncHttpxClient
    assert issubclass(own, client_library().AsyncClient)
    assert isinstance(open_session().http_client, client_library().AsyncClient)


@pytest.mark.parametrize(
    ("requirements", "library"),
    [
        (["httpx<1,>=0.23.0", "pydantic"], httpx),
        (["httpx<1,>=0.23.0", "httpx2<3,>=2.7.0; extra == 'httpx2'"], httpx),
        (["httpx2<3,>=2.12.0", "httpx<1; extra == 'legacy'"], httpx2),
        (None, httpx),
    ],
)
def test_the_kind_follows_what_openai_is_built_on(monkeypatch, requirements, library):
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: requirements)
    assert client_library.__wrapped__() is library


def test_without_openai_the_kind_is_httpx(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert client_library.__wrapped__() is httpx


def test_an_agent_that_closes_the_client_harms_nobody(connection, backend, open_session):
    backend.says("It is 408.", "Yes.", "Yes.")
    session = open_session()

    async def agent():
        shared = session.http_client
        async with openai.AsyncOpenAI(base_url=session.base_url, api_key=session.api_key, http_client=shared) as client:
            await create(client)
        await client.close()
        async with shared:
            await create(client)
        await shared.aclose()
        assert not shared.is_closed
        await create(client)

    asyncio.run(agent())
    assert len(session.calls) == 3


def test_the_client_serves_one_event_loop_after_another(in_process, backend, open_session):
    backend.says("It is 408.", "Yes.")
    session = open_session()
    for _ in range(2):
        asyncio.run(create(in_process.client(session)))
    assert len(session.calls) == 2


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_the_clients_own_read_timeout_is_honoured_with_its_own_error(gateway, backend, open_session, library):
    backend.script = ["hang"]
    session = open_session()

    async def agent():
        client = gateway.http_client(library)
        await client.post(f"{session.base_url}/chat/completions", json={"messages": [ASK]}, timeout=0.05)

    with pytest.raises(library.ReadTimeout, match="no answer within"):
        asyncio.run(agent())
    assert (backend.running, backend.cancelled) == (0, 1)


def test_thousands_of_calls_wait_at_once(gateway, backend, open_session, monkeypatch):
    session = open_session()
    number = 2000
    everyone = asyncio.Event()

    async def generate(request):
        backend.requests.append(request)
        if len(backend.requests) == number:
            everyone.set()
        await everyone.wait()  # No call ends before all have reached the backend.
        yield backend.chunk([5, backend.end])

    monkeypatch.setattr(backend, "generate", generate)

    async def agents():
        body = {"messages": [ASK]}
        headers = {"authorization": f"Bearer {session.api_key}"}
        client = gateway.http_client()
        posts = (client.post(f"{session.base_url}/chat/completions", json=body, headers=headers) for _ in range(number))
        return await asyncio.gather(*posts)

    assert {response.status_code for response in asyncio.run(agents())} == {200}
    assert len(session.calls) == number


class Elsewhere(BaseHTTPRequestHandler):
    """A server that has nothing to do with the gateway."""

    def do_POST(self) -> None:
        self.send_response(418)
        self.end_headers()
        self.wfile.write(b"teapot")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere():
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_requests_to_other_hosts_go_there(gateway, elsewhere, open_session, library):
    open_session()

    async def agent():
        client = gateway.http_client(library)
        response = await client.post(f"{elsewhere}/v1/chat/completions", headers={"authorization": "Bearer sk-other"})
        await gateway._clients._transports[-1]._client_outside().aclose()
        return response

    response = asyncio.run(agent())
    assert (response.status_code, response.text) == (418, "teapot")


def test_a_sessions_key_never_leaves_the_process(gateway, backend, elsewhere, open_session):
    session = open_session()
    backend.says("It is 408.")

    async def agent(api_key):
        client = openai.AsyncOpenAI(base_url=f"{elsewhere}/v1", api_key=api_key, http_client=gateway.http_client())
        return await create(client)

    asyncio.run(agent(session.api_key))
    session.close()
    with pytest.raises(openai.NotFoundError, match="is closed"):
        asyncio.run(agent(session.api_key))
    assert len(session.calls) == 1


def test_calls_from_many_threads_and_loops_are_recorded_in_one_session(in_process, backend, open_session):
    session = open_session()
    backend.says(*["It is 408."] * 16)
    threads = [threading.Thread(target=lambda: asyncio.run(create(in_process.client(session)))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(session.calls) == 16
    assert len({call.id for call in session.calls}) == 16
