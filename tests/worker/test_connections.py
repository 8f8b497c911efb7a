"""The connections of a worker's agents: each request has one of its own, which the next one takes."""

from __future__ import annotations

import asyncio
import gc
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import httpx2
import pytest

from agentrl.worker.connections import GatewayTransport, origin_of

CERTIFICATES = Path(__file__).parents[1] / "gateway" / "certificates"


class Answering:
    """A server that answers every request after it has heard from all who are to ask at once."""

    def __init__(self, together: int = 1) -> None:
        self.connections = self.requests = self.open = 0
        self._together, self._all = together, asyncio.Event()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                if self.requests >= self._together:
                    self._all.set()
                await self._all.wait()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def listening(answering: Answering, tls: ssl.SSLContext | None = None):
    server = await asyncio.start_server(answering.connected, "127.0.0.1", 0, ssl=tls, backlog=1000)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{port}/capture/v1"


def asked(scenario):
    async def main():
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(main())


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request):
    return request.param


def client_of(library, url, transport):
    return library.AsyncClient(mounts={origin_of(url): transport}, trust_env=False, verify=False)


def test_requests_one_after_another_share_a_connection_and_those_at_once_have_one_each(library):
    async def scenario():
        answering = Answering(together=300)
        async with listening(answering) as url, client_of(library, url, GatewayTransport(library)) as client:
            answers = await asyncio.gather(*(client.get(url) for _ in range(300)))
            assert [answer.text for answer in answers] == ["ok"] * 300
            for _ in range(50):
                await client.get(url)
            assert (answering.requests, answering.connections) == (350, 300)
        await asyncio.sleep(0.05)
        assert answering.open == 0, "closing the client closes them"

    asked(scenario)


def test_a_request_that_is_given_up_takes_its_connection_with_it(library):
    async def scenario():
        answering = Answering(together=2)
        async with listening(answering) as url, client_of(library, url, GatewayTransport(library)) as client:
            with pytest.raises(library.ReadTimeout):
                await client.get(url, timeout=0.1)
            assert (await client.get(url)).text == "ok"
            assert answering.connections == 2

    asked(scenario)


def test_one_that_the_server_has_closed_is_not_used_and_errors_are_the_librarys(library):
    async def scenario():
        answering = Answering()
        transport = GatewayTransport(library)
        async with listening(answering) as url, client_of(library, url, transport) as client:
            await client.get(url)
        async with client_of(library, url, transport) as client:
            with pytest.raises(library.ConnectError):
                await client.get(url)

    asked(scenario)


def test_a_certificate_of_the_environment_is_trusted(library, monkeypatch):
    async def scenario():
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(CERTIFICATES / "certificate.pem", CERTIFICATES / "key.pem")
        async with listening(Answering(), tls) as url:
            async with client_of(library, url, GatewayTransport(library)) as client:
                with pytest.raises(library.ConnectError, match="CERTIFICATE_VERIFY"):
                    await client.get(url)
            monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "certificate.pem"))
            async with client_of(library, url, GatewayTransport(library)) as client:
                assert (await client.get(url)).text == "ok"
        gc.collect()

    asked(scenario)
