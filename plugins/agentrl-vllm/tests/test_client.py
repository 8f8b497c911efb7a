"""HTTP to a server: connections used again, closed when given up, and what each failure is called."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from stub import LAST, Answer, Stub, stub

from agentrl.errors import BackendError, PromptTooLong, UnsupportedSampling
from agentrl_vllm.client import Client, ServerFailed, ServerHangs
from agentrl_vllm.connections import allow_open_files

DEADLINE_S = 20.0


async def well(path: str, body: Any) -> Answer:
    return 200, {"body": body}


async def silent(path: str, body: Any) -> Answer:
    await asyncio.sleep(DEADLINE_S)
    return 200, {}


def using(handler: Any, scenario: Callable[[Client, Stub], Awaitable[Any]], seconds: float = 10) -> Any:
    """Run ``scenario`` with a client and a server that answers with ``handler``."""

    async def main() -> Any:
        async with asyncio.timeout(DEADLINE_S), stub(handler) as server:
            client = Client(seconds)
            try:
                return await scenario(client, server)
            finally:
                await client.close()

    return asyncio.run(main())


def test_requests_one_after_another_share_a_connection_and_at_once_have_their_own() -> None:
    async def scenario(client: Client, server: Stub) -> None:
        for number in range(3):
            assert await client.post(server.url, "/path", {"n": number}) == {"body": {"n": number}}
        assert server.connections == 1
        await asyncio.gather(*(client.get(server.url, "/path") for _ in range(200)))
        assert server.connections <= 200

    using(well, scenario)


def test_a_connection_that_the_server_closed_meanwhile_is_not_used_again() -> None:
    async def scenario(client: Client, server: Stub) -> None:
        for number in range(1, 4):
            await client.get(server.url, LAST)
            await server.closed.wait()
            server.closed.clear()
            assert server.connections == number

    using(well, scenario)


def test_a_connection_that_was_closed_while_the_loop_was_busy_is_not_used_again() -> None:
    """As a server does that keeps idle ones for five seconds, and a step of the learner that takes longer."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    answered, closed = threading.Event(), threading.Event()

    def serve(listening: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)
                answered.wait(DEADLINE_S)
            closed.set()

    async def main(url: str) -> None:
        client = Client(5)
        try:
            assert await client.get(url, "/one") == {}
            answered.set()
            assert closed.wait(DEADLINE_S)
            assert await client.get(url, "/two") == {}
        finally:
            await client.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(DEADLINE_S)
        thread = threading.Thread(target=serve, args=[listening])
        thread.start()
        asyncio.run(main(f"http://127.0.0.1:{listening.getsockname()[1]}"))
        thread.join(DEADLINE_S)


def test_a_request_that_is_given_up_closes_its_connection() -> None:
    async def scenario(client: Client, server: Stub) -> None:
        asking = asyncio.ensure_future(client.get(server.url, "/path"))
        await server.until(lambda: server.asked)
        asking.cancel()
        await asyncio.wait([asking])
        await server.until(lambda: server.left)

    using(silent, scenario)


def test_a_stream_that_is_given_up_closes_its_connection() -> None:
    async def many(path: str, body: Any) -> Answer:
        return [{"n": number} for number in range(10)]

    async def scenario(client: Client, server: Stub) -> None:
        async with aclosing(client.events(server.url, "/path", {})) as events:
            assert await anext(events) == {"n": 0}
        async with aclosing(client.events(server.url, "/path", {})) as events:
            assert [event["n"] async for event in events] == list(range(10))
        assert server.connections == 2
        await client.get(server.url, "/path")
        assert server.connections == 2, "a stream that was read to its end leaves its connection"

    using(many, scenario)


def test_a_server_that_takes_a_request_and_is_silent_hangs() -> None:
    async def scenario(client: Client, server: Stub) -> None:
        with pytest.raises(ServerHangs, match=r"did not answer /path within 0\.2 s"):
            await client.post(server.url, "/path", {})

    using(silent, scenario, seconds=0.2)


def test_a_server_that_is_not_there_has_failed() -> None:
    async def scenario(client: Client, server: Stub) -> None:
        with pytest.raises(ServerFailed, match=r"http://127\.0\.0\.1:1 broke at /path"):
            await client.get("http://127.0.0.1:1", "/path")

    using(well, scenario)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"message": "The prompt is longer than the maximum model length of 4.", "param": None}, PromptTooLong),
        (400, {"message": "top_p must be in (0, 1]", "param": "top_p"}, UnsupportedSampling),
        (400, {"message": "Token id 9 is out of vocabulary", "param": None}, BackendError),
        (403, {"message": "disabled"}, BackendError),
        (500, {"message": "the engine is dead"}, ServerFailed),
        (503, "not JSON of the usual kind", ServerFailed),
    ],
)
def test_an_error_is_named_by_what_it_means(status: int, error: Any, kind: type[BackendError]) -> None:
    async def failing(path: str, body: Any) -> Answer:
        return status, {"error": error}

    async def scenario(client: Client, server: Stub) -> None:
        with pytest.raises(BackendError) as caught:
            await client.post(server.url, "/path", {})
        assert type(caught.value) is kind
        assert str(error["message"] if isinstance(error, dict) else error) in caught.value.message

    using(failing, scenario)


def test_to_close_ends_what_is_under_way_in_any_loop() -> None:
    ended: list[BaseException] = []

    async def scenario(client: Client, server: Stub) -> None:
        def elsewhere() -> None:
            try:
                asyncio.run(client.get(server.url, "/there"))
            except BackendError as error:
                ended.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        here = asyncio.ensure_future(client.get(server.url, "/here"))
        await server.until(lambda: len(server.asked) == 2)
        await client.close()
        await client.close()
        with pytest.raises(ServerFailed):
            await here
        await asyncio.to_thread(thread.join, DEADLINE_S)
        assert [type(error) for error in ended] == [ServerFailed]
        with pytest.raises(ServerFailed, match="closed"):
            await client.get(server.url, "/path")

    using(silent, scenario)


def test_a_loop_that_ends_closes_its_connections() -> None:
    """Else Python warns of sockets that nobody closed, which is an error here."""

    async def scenario(client: Client, server: Stub) -> None:
        for _ in range(2):
            await asyncio.to_thread(asyncio.run, client.get(server.url, "/path"))

    using(well, scenario)


def test_that_no_connection_comes_about_in_time_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a loop of ours that was busy."""

    async def never(host: str, port: int) -> Any:
        await asyncio.sleep(DEADLINE_S)

    async def scenario(client: Client, server: Stub) -> None:
        monkeypatch.setattr(asyncio, "open_connection", never)
        with pytest.raises(ServerFailed) as caught:
            await client.get(server.url, "/path", seconds=0.1)
        assert not isinstance(caught.value, ServerHangs)

    using(well, scenario)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL])
def test_a_limit_of_this_machine_is_no_fault_of_a_server(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    async def refuse(host: str, port: int) -> Any:
        raise OSError(number, os.strerror(number))

    async def scenario(client: Client, server: Stub) -> None:
        monkeypatch.setattr(asyncio, "open_connection", refuse)
        with pytest.raises(BackendError, match=r"this process cannot connect to 127\.0\.0\.1:\d+: ") as caught:
            await client.get(server.url, "/path")
        assert not isinstance(caught.value, ServerFailed)
        assert ("ulimit -n" in str(caught.value)) is (number == errno.EMFILE)

    using(well, scenario)


def test_as_many_files_may_be_open_as_we_may_allow_ourselves() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 200), before[1]))
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(before[1], 65536), before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_server_behind_a_path_is_asked_by_its_name_and_shown_the_key() -> None:
    async def main() -> None:
        heads: list[bytes] = []

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(connected, "127.0.0.1", 0) as server, Client(5, "sk-mine") as client:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            await client.get(f"http://{address}/behind", "/path")
        lines = heads[0].split(b"\r\n")
        assert lines[0] == b"GET /behind/path HTTP/1.1"
        assert {b"host: " + address.encode(), b"authorization: Bearer sk-mine"} <= set(lines)

    asyncio.run(main())


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def test_a_server_may_speak_tls_and_has_to_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = self_signed(tmp_path)
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate, key)

    async def main() -> None:
        server = Stub(well)
        async with asyncio.timeout(DEADLINE_S):
            listening = await asyncio.start_server(server.connected, "127.0.0.1", 0, ssl=serving)
            url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
            async with Client(5) as client:
                with pytest.raises(ServerFailed, match="self-signed certificate"):
                    await client.get(url, "/path")
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            async with Client(5) as client:
                big = {"n": ["x" * 1000] * 300}
                for _ in range(3):
                    assert await client.post(url, "/path", big) == {"body": big}
            listening.close()

    asyncio.run(main())
