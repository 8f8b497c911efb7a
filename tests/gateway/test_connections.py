"""Connections as they come: whole, in pieces, too slow, too large, malformed, left unread; and a server that stops."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import io
import json
import logging
import resource
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from agentrl.gateway.connection import ConnectionLimits
from agentrl.gateway.contract import Exchange, Reply
from agentrl.gateway.server import Application, Server
from agentrl.loops import AwakeClock

ASK = json.dumps({"messages": [{"role": "user", "content": "What is 12 * 34?"}]}).encode()
PATIENCE_S = 20
PATIENT = ConnectionLimits(header_bytes=4096, stop_s=0.2)
SHORT = ConnectionLimits(header_s=0.5, body_s=0.5, header_bytes=4096, stop_s=0.2)
SOON = ConnectionLimits(header_s=1, body_s=1)
"""Short, but not for a client that sends something first on a busy machine."""


@pytest.fixture(params=["httptools", "h11"])
def parser(request, monkeypatch):
    """What is used where it installs, and what is used elsewhere."""
    if request.param == "h11":
        from uvicorn.protocols.http import auto, h11_impl

        monkeypatch.setattr(auto, "AutoHTTPProtocol", h11_impl.H11Protocol)
    else:
        pytest.importorskip("httptools")
    return request.param


@pytest.fixture
def serve(parser, gateway):
    """Starts a server before the gateway, with limits of its own."""
    servers = []

    def serve(limits: ConnectionLimits = ConnectionLimits(), **options: object) -> Server:  # noqa: B008
        servers.append(Server(gateway, limits, **options))
        servers[-1].start()
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


class Kept(io.BufferedReader):
    """What a socket receives; it outlives the response that is read from it."""

    def makefile(self, mode: str) -> Kept:
        return self

    def close(self) -> None:
        pass


class Client:
    """A bare socket, and the responses that come over it."""

    def __init__(self, server: Server, session=None) -> None:
        self.server = server
        url = urlsplit(server.url)
        self.socket = socket.create_connection((url.hostname, url.port), timeout=PATIENCE_S)
        self.received = Kept(self.socket.makefile("rb", buffering=0))
        self.path = urlsplit(session.base_url).path if session else "/v1"

    def post(self, *headers: str, body: bytes = ASK, length: bool = True) -> bytes:
        """The bytes of a chat request."""
        lines = [f"POST {self.path}/chat/completions HTTP/1.1", "Host: x", *headers]
        lines += [f"Content-Length: {len(body)}"] if length else []
        return "\r\n".join([*lines, "", ""]).encode() + body

    def send(self, data: bytes) -> Client:
        self.socket.sendall(data)
        return self

    def drip(self, data: bytes) -> None:
        """A byte at a time, until the server has had enough."""
        for byte in data:
            try:
                self.socket.sendall(bytes([byte]))
            except OSError:
                return
            time.sleep(0.01)

    def answer(self, method: str = "POST") -> http.client.HTTPResponse:
        """The next response, read to its end."""
        response = http.client.HTTPResponse(self.received, method=method)
        response.begin()
        response.content = response.read()
        return response

    def error(self) -> tuple[int, str]:
        """Status and code of the next response."""
        response = self.answer()
        return response.status, json.loads(response.content)["error"]["code"]

    @property
    def ended(self) -> bool:
        """Waits until the server has closed."""
        try:
            return self.received.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.received.raw.close()
        self.socket.close()


@pytest.fixture
def connect(serve):
    """Opens connections to a server, one for each set of limits."""
    with contextlib.ExitStack() as stack:
        servers = {}

        def connect(session=None, limits: ConnectionLimits = PATIENT) -> Client:
            server = servers.setdefault(limits, None) or serve(limits)
            servers[limits] = server
            return stack.enter_context(contextlib.closing(Client(server, session)))

        yield connect


def test_what_is_written_goes_out_at_once(serve):
    server = serve()
    client = Client(server)
    client.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n").answer()
    (connection,) = server._server.server_state.connections
    assert connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    client.close()


def test_the_fast_parser_is_used_where_it_is_installed_and_the_loop_that_takes_up_all_who_connect(parser, serve):
    connections = []
    server = serve()
    client = Client(server)
    client.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n").answer()
    connections += server._server.server_state.connections
    names = {kind.__module__.partition(".")[0] + "." + kind.__name__ for kind in type(connections[0]).__mro__}
    loop = type(connections[0].loop).__module__.partition(".")[0]
    assert ("uvicorn.HttpToolsProtocol" in names, loop) == (parser == "httptools", "asyncio")
    client.close()


def test_a_kept_connection_answers_one_request_after_another(connect, backend, open_session):
    session = open_session()
    client = connect(session)
    for _ in range(3):
        backend.says("It is 408.")
        answer = client.send(client.post()).answer()
        assert (answer.status, answer.getheader("connection")) == (200, None)
    assert len(session.calls) == 3


def test_pipelined_requests_are_answered_in_their_order(connect, backend, open_session):
    session = open_session()
    client = connect(session)
    backend.says("It is 408.", "It is 409.", "It is 410.")
    client.send(client.post() * 3)
    texts = [json.loads(client.answer().content)["choices"][0]["message"]["content"] for _ in range(3)]
    assert texts == ["It is 408.", "It is 409.", "It is 410."]


def test_a_client_of_http_1_0_is_answered_and_the_connection_closed(connect, backend, open_session):
    session = open_session()
    backend.says("It is 408.")
    client = connect(session)
    assert client.send(client.post().replace(b"HTTP/1.1", b"HTTP/1.0")).answer().status == 200
    assert client.ended


def test_a_client_that_waits_for_100_continue_gets_it(connect, backend, open_session):
    session = open_session()
    backend.says("It is 408.")
    client = connect(session)
    client.send(client.post("Expect: 100-continue").removesuffix(ASK))
    assert [client.received.readline() for _ in range(2)] == [b"HTTP/1.1 100 Continue\r\n", b"\r\n"]
    assert client.send(ASK).answer().status == 200


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_chunked_body_is_a_body(connect, backend, open_session, size):
    session = open_session()
    backend.says("It is 408.")
    client = connect(session)
    chunks = [ASK[start : start + size] for start in range(0, len(ASK), size)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])
    assert client.send(client.post("Transfer-Encoding: chunked", body=body, length=False)).answer().status == 200


def test_a_request_in_many_pieces_is_one_request(connect, backend, open_session):
    session = open_session()
    backend.says("It is 408.")
    client = connect(session)
    request = client.post()
    for start in range(0, len(request), 16):
        client.send(request[start : start + 16])
        time.sleep(0.001)
    assert client.answer().status == 200


@pytest.mark.parametrize("begun", [b"GET /", b"GET /v1/models HTTP/1.1\r\nX: "])
def test_a_header_that_does_not_end_is_a_408_however_many_bytes_still_come(connect, begun):
    client = connect(limits=SHORT)
    client.send(begun)
    threading.Thread(target=client.drip, args=(b"x" * 800,)).start()
    assert client.error() == (408, "request_timeout")
    assert client.ended


def test_blank_lines_are_no_request_and_keep_no_connection(connect):
    client = connect(limits=SHORT)
    threading.Thread(target=client.drip, args=(b"\r\n" * 400,)).start()
    assert client.error() in {(408, "request_timeout"), (400, "invalid_http")}
    assert client.ended


def test_so_it_is_on_a_connection_that_was_used_before(connect, backend, open_session):
    session = open_session()
    backend.says("It is 408.")
    client = connect(session, SOON)
    client.send(client.post()).answer()
    client.send(b"POST ")
    assert client.error() == (408, "request_timeout")
    assert client.ended


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_end_is_a_408_however_many_bytes_still_come(connect, open_session, framing):
    session = open_session()
    client = connect(session, SHORT)
    client.send(client.post(framing, body=b"", length=False))
    piece = b"1\r\nx\r\n" * 200 if "chunked" in framing else b"x" * 800
    threading.Thread(target=client.drip, args=(piece,)).start()
    assert client.error() == (408, "request_timeout")
    assert client.ended
    assert (session.calls, session.refusals) == ((), ())


def test_an_sdk_is_told_to_send_again_what_came_too_slowly(connect, open_session):
    client = connect(open_session(), SHORT)
    client.send(client.post(body=b"", length=False)[:-2] + b"Content-Length: 10\r\n\r\n")
    assert client.answer().getheader("x-should-retry") == "true"


def test_a_pause_of_the_process_is_not_the_clients_time(serve, backend, open_session):
    session = open_session()
    backend.says("It is 408.")
    server = serve(SHORT, clock=AwakeClock(monotonic=lambda: 7.0))  # As it is while nothing runs.
    with contextlib.closing(Client(server, session)) as client:
        request = client.post()
        for part in (request[:20], request[20:-20]):
            client.send(part)
            time.sleep(1.2 * max(SHORT.header_s, SHORT.body_s))
        assert client.send(request[-20:]).answer().status == 200


def test_no_log_shows_a_secret_however_much_is_logged(serve, open_session, caplog):
    session = open_session()
    with caplog.at_level(1):
        server = serve()
        with contextlib.closing(Client(server, session)) as client:
            client.send(client.post(f"Authorization: Bearer {session.api_key}", body=b"{}")).answer()
            client.send(b"no request\r\n\r\n").answer()
        server.stop()
    secrets = session.base_url.split("/")[3], session.api_key
    assert "ASGI" in caplog.text
    assert not any(secret in caplog.text for secret in secrets)


def test_a_connection_that_asks_nothing_is_closed(connect):
    assert connect(limits=SHORT).ended


def test_a_call_may_take_longer_than_its_request(connect, backend, open_session):
    session = open_session()
    backend.script = ["hang"]
    client = connect(session, SOON)
    client.send(client.post())
    while not backend.running:
        time.sleep(0.002)
    time.sleep(1.5 * SOON.header_s)
    assert backend.running == 1
    session.close()
    assert client.error() == (404, "session_closed")


@pytest.mark.parametrize("ended", [b"\r\n\r\n", b""], ids=["whole", "without an end"])
def test_a_header_over_the_limit_is_a_431(connect, ended):
    client = connect()
    with contextlib.suppress(ConnectionError):
        client.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 5000 + ended)
    assert client.error() == (431, "header_too_large")


def test_a_body_over_the_limit_is_refused_before_it_is_sent(connect, gateway):
    client = connect()
    client.send(
        client.post(f"Content-Length: {gateway.body_limit + 1}", "Expect: 100-continue", body=b"", length=False)
    )
    assert client.error() == (413, "request_too_large")


def test_a_chunked_body_over_the_limit_is_refused_once_it_is(connect, gateway, monkeypatch):
    monkeypatch.setattr(gateway, "body_limit", 1000)
    client = connect()
    body = b"400\r\n" + b"x" * 1024 + b"\r\n"
    client.send(client.post("Transfer-Encoding: chunked", body=body, length=False))
    assert client.error() == (413, "request_too_large")


@pytest.mark.parametrize(
    "request_",
    [
        b"hello\r\n\r\n",
        b"GET /v1/models HTTX/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
        b"\x00" * 64,
    ],
)
def test_what_is_no_http_is_a_400_in_the_apis_own_shape(connect, request_):
    client = connect()
    client.send(request_)
    assert client.error() == (400, "invalid_http")
    assert client.ended


def test_what_is_no_http_after_a_request_never_passes_for_its_answer(connect, backend, open_session):
    session = open_session()
    backend.script = ["hang"]
    client = connect(session)
    client.send(client.post())
    while not backend.running:
        time.sleep(0.002)
    client.send(b"\x00\x01 no request\r\n\r\n" * 2)
    session.close()
    received = b""
    with contextlib.suppress(ConnectionError):
        received = client.received.read()
    assert received.startswith(b"HTTP/1.1 404") or not received


class Losses:
    """What is heard of the answers that the gateway gave."""

    def __init__(self) -> None:
        self.given = threading.Event()
        self.lost = threading.Event()
        self.number_lost = 0

    def lose(self) -> None:
        self.number_lost += 1
        self.lost.set()


@pytest.fixture
def losses(gateway, monkeypatch) -> Losses:
    losses, answer = Losses(), gateway.answer

    async def watched(exchange: Exchange) -> Reply:
        reply = dataclasses.replace(await answer(exchange), lost=losses.lose)
        losses.given.set()
        return reply

    monkeypatch.setattr(gateway, "answer", watched)
    return losses


def test_an_answer_that_its_client_left_unread_is_lost(connect, backend, open_session, losses):
    session = open_session()
    backend.says("It is 408.")
    client = connect(session)
    client.send(client.post())
    client.socket.recv(10)
    client.close()
    assert losses.lost.wait(PATIENCE_S)
    assert (losses.number_lost, len(session.calls)) == (1, 1)


def test_so_is_one_whose_client_went_a_moment_before_it_was_sent(connect, backend, open_session, losses, monkeypatch):
    session = open_session()
    client = connect(session)

    async def generate(request):
        client.close()  # On the server's own thread: it has heard nothing of it when it writes the answer.
        yield backend.chunk([5, backend.end])

    monkeypatch.setattr(backend, "generate", generate)
    client.send(client.post())
    assert losses.lost.wait(PATIENCE_S)
    assert (losses.number_lost, len(session.calls)) == (1, 1)


def test_so_is_one_that_was_read_in_part(connect, gateway, losses, monkeypatch):
    async def large(exchange: Exchange) -> Reply:
        return Reply(200, b"x" * 2**25, lost=losses.lose)

    monkeypatch.setattr(gateway, "answer", large)
    client = connect()
    client.send(client.post())
    client.socket.recv(2**16)
    client.close()
    assert losses.lost.wait(PATIENCE_S)
    assert losses.number_lost == 1


def test_one_that_was_read_whole_has_arrived(connect, backend, open_session, losses):
    session = open_session()
    backend.says("It is 408.", "It is 408.")
    client = connect(session)
    for _ in range(2):
        client.send(client.post()).answer()
    client.close()
    client.server.stop()  # By then it has heard that the client has gone.
    assert (losses.number_lost, len(session.calls)) == (0, 2)


def test_an_asgi_server_may_say_by_an_error_that_the_client_has_gone(gateway, losses):
    async def call() -> None:
        asked = asyncio.Event()

        async def receive():
            if asked.is_set():
                await asyncio.Event().wait()
            asked.set()
            return {"type": "http.request", "body": b""}

        async def send(message):
            raise OSError("gone")

        scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [], "query_string": b""}
        await Application(gateway, ConnectionLimits())(scope, receive, send)

    asyncio.run(call())
    assert losses.number_lost == 1


@pytest.fixture
def many_files():
    """Room for two ends of a thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_a_server_with_a_thousand_connections_stops_in_silence(serve, open_session, caplog, capfd):
    server = serve(ConnectionLimits(stop_s=0.2))
    session = open_session()
    begun = [b"", b"P", b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx", b"answered"]
    with contextlib.ExitStack() as stack, caplog.at_level(logging.WARNING):
        clients = [stack.enter_context(contextlib.closing(Client(server, session))) for _ in range(1000)]
        for number, client in enumerate(clients):
            data = begun[number % len(begun)]
            client.send(client.post(body=b"{}") if data == b"answered" else data)
        for client in clients[3::4]:
            assert client.answer().status == 400
        server.stop()
        assert all(client.ended for client in clients)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_a_client_that_reads_nothing_does_not_keep_a_server_from_stopping(connect, serve, gateway, losses, monkeypatch):
    async def large(exchange: Exchange) -> Reply:
        losses.given.set()
        return Reply(200, b"x" * 2**25, lost=losses.lose)

    monkeypatch.setattr(gateway, "answer", large)
    server = serve(ConnectionLimits(stop_s=0.1))
    client = Client(server)
    client.send(client.post())
    assert losses.given.wait(PATIENCE_S)
    server.stop()
    client.close()
    assert losses.number_lost == 1
