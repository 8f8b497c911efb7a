"""Where a gateway listens: what clients are told, TLS, and that away from the loopback interface a key is needed."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import httpx2
import openai
import pytest

from agentrl.config.models import GatewaySection
from agentrl.errors import ConfigError
from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.gateway.address import Address
from agentrl.inference.contract import Capabilities

ASK = {"role": "user", "content": "What is 12 * 34?"}
BODY = {"model": "x", "messages": [ASK]}
FILES = Path(__file__).parent / "certificates"
CERTIFICATE, KEY = FILES / "certificate.pem", FILES / "key.pem"


@dataclass
class Hosts:
    """A scheduler's hosts, as far as an address needs them."""

    address: str
    elsewhere: bool


def own_address() -> str:
    """An address of this machine beside that of the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # Sends nothing.
        except OSError:
            pytest.skip("this machine has no network")
        host: str = probe.getsockname()[0]
    if host.startswith("127."):
        pytest.skip("this machine has no network")
    return host


@pytest.fixture
def at(renderer):
    """``at(address)`` starts a gateway there; its model has one thing to say, and says it at once."""
    from tests.gateway.conftest import ScriptedBackend

    started: list[Gateway] = []

    def at(address: Address) -> Gateway:
        backend = ScriptedBackend(renderer)
        for _ in range(8):
            backend.says("It is 408.")
        capabilities = Capabilities(context_length=1024, max_concurrency=8)
        started.append(Gateway(EngineCompleter(backend, capabilities, renderer), address=address))
        started[-1].start()
        return started[-1]

    yield at
    for gateway in started:
        gateway.stop()


def post(url: str, key: str | None = None, **options: object) -> httpx2.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    trust = ssl.create_default_context(cafile=str(CERTIFICATE))
    with httpx2.Client(verify=trust, trust_env=False) as client:
        return client.post(f"{url}/chat/completions", json=BODY, headers={**headers, **options.get("headers", {})})


# Where it is


@pytest.mark.parametrize(
    ("section", "hosts", "host", "name"),
    [
        ({}, None, "127.0.0.1", None),
        ({}, Hosts("127.0.0.1", False), "127.0.0.1", None),
        ({}, Hosts("10.0.0.5", True), "10.0.0.5", "10.0.0.5"),
        ({}, Hosts("head-node", True), "head-node", "head-node"),
        ({"host": "127.0.0.1"}, Hosts("10.0.0.5", True), "127.0.0.1", None),
        ({"host": "0.0.0.0"}, Hosts("10.0.0.5", True), "0.0.0.0", "10.0.0.5"),
        ({"host": "0.0.0.0"}, None, "0.0.0.0", None),
    ],
)
def test_it_listens_where_the_config_says_or_else_where_hosts_elsewhere_reach_it(section, hosts, host, name):
    address = Address.of(GatewaySection(**section), hosts)
    assert (address.host, address.name) == (host, name)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (Address(), "http://127.0.0.1:PORT"),
        (Address(host="localhost"), "http://localhost:PORT"),
        (Address(host="0.0.0.0"), "http://127.0.0.1:PORT"),
        (Address(host="0.0.0.0", name="10.0.0.5"), "http://10.0.0.5:PORT"),
        (Address(host="0.0.0.0", name="fd00::2"), "http://[fd00::2]:PORT"),
        (Address(certificate=CERTIFICATE, certificate_key=KEY), "https://127.0.0.1:PORT"),
        (Address(url="https://agents.example.com:443/rl/"), "https://agents.example.com/rl"),
        (Address(url="http://10.0.0.5:8000"), "http://10.0.0.5:8000"),
    ],
)
def test_clients_are_told_a_url_by_which_they_reach_it(address, url):
    with socket.create_server(("127.0.0.1" if address.host == "localhost" else address.host, 0)) as listener:
        assert address.url_at(listener) == url.replace("PORT", str(listener.getsockname()[1]))


@pytest.mark.parametrize("url", ["10.0.0.5:8000", "ftp://host", "http://", "http://host:many", "https://host/?a=b"])
def test_a_url_that_leads_nowhere_is_refused_by_its_key(url):
    with pytest.raises(ConfigError, match=r"gateway\.url=.* is not where clients can reach the gateway"):
        Address.of(GatewaySection(url=url))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"certificate": FILES / "none.pem"}, "none.pem give no certificate with its key: .*No such file"),
        ({"certificate": CERTIFICATE}, "certificate.pem give no certificate with its key"),
        ({"certificate": KEY, "certificate_key": KEY}, "give no certificate with its key"),
        ({"certificate": CERTIFICATE, "certificate_key": FILES / "locked_key.pem"}, "the private key has a password"),
        ({"certificate_key": KEY}, "certificate_key is set, and gateway.certificate is not"),
    ],
)
def test_files_that_are_no_certificate_with_its_key_are_refused_before_anything_starts(files, said):
    with pytest.raises(ConfigError, match=said):
        Address.of(GatewaySection(**files))


def test_an_address_of_another_machine_is_refused_with_the_keys_that_help(at):
    with pytest.raises(ConfigError, match=r"cannot be served at 192\.0\.2\.77, port 0") as refused:
        at(Address(host="192.0.2.77"))
    assert "gateway.host" in refused.value.fix


# TLS


def test_with_a_certificate_every_way_to_the_gateway_is_encrypted(at):
    gateway = at(Address(certificate=CERTIFICATE, certificate_key=KEY))
    session, endpoint = gateway.open_session(SessionSettings(training=True)), gateway.open_worker_endpoint()
    assert session.base_url.startswith("https://127.0.0.1:")
    assert endpoint.base_url.startswith("https://127.0.0.1:")
    endpoint.attach(session.api_key)
    assert post(session.base_url, session.api_key).status_code == 200
    assert post(endpoint.base_url, endpoint.api_key).status_code == 200
    assert len(session.calls) == 2


def test_in_process_nothing_of_it_is_seen(at):
    gateway = at(Address(certificate=CERTIFICATE, certificate_key=KEY))
    session = gateway.open_session(SessionSettings(training=True))

    async def call():
        client = openai.AsyncOpenAI(base_url=session.base_url, api_key=session.api_key, http_client=session.http_client)
        await client.chat.completions.create(**BODY)

    asyncio.run(call())
    assert len(session.calls) == 1


def test_a_client_that_does_not_trust_the_certificate_sends_nothing(at):
    gateway = at(Address(certificate=CERTIFICATE, certificate_key=KEY))
    session = gateway.open_session(SessionSettings(training=True))
    with httpx2.Client(trust_env=False) as client, pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY"):
        client.post(f"{session.base_url}/chat/completions", json=BODY)
    with httpx2.Client(trust_env=False) as client, pytest.raises(httpx2.TransportError):
        client.post(f"{session.base_url}/chat/completions".replace("https", "http"), json=BODY)
    assert session.calls == ()


# Keys


def test_away_from_the_loopback_interface_the_url_alone_opens_nothing(at, caplog):
    caplog.set_level(logging.DEBUG)
    gateway = at(Address(host=own_address()))
    session, other = (gateway.open_session(SessionSettings(training=True)) for _ in range(2))
    for key in (None, "EMPTY"):
        refused = post(session.base_url, key)
        assert refused.status_code == 401, refused.text
        assert session.credentials.capture not in refused.text
    assert post(session.base_url, other.api_key).status_code == 401
    assert session.calls == other.calls == ()
    assert post(session.base_url, session.api_key).status_code == 200
    assert post(f"{gateway.url}/v1", session.api_key).status_code == 200
    assert len(session.calls) == 2
    assert session.api_key not in caplog.text
    assert session.credentials.capture not in caplog.text


def test_nobody_elsewhere_is_taken_for_a_client_of_this_machine_by_his_own_word(at, monkeypatch):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    session = at(Address(host=own_address())).open_session(SessionSettings(training=True))
    assert post(session.base_url, "EMPTY", headers={"x-forwarded-for": "127.0.0.1"}).status_code == 401


def test_nor_does_that_of_a_worker(at):
    gateway = at(Address(host=own_address()))
    session, endpoint = gateway.open_session(SessionSettings(training=True)), gateway.open_worker_endpoint()
    endpoint.attach(session.api_key)
    assert post(endpoint.base_url, "EMPTY").status_code == 401
    assert post(session.base_url, endpoint.api_key).status_code == 200
    assert post(endpoint.base_url, endpoint.api_key).status_code == 200


@pytest.mark.parametrize(
    ("url", "from_elsewhere"), [("http://agents.example.com/rl", {}), (None, {"x-forwarded-for": "10.1.2.3"})]
)
def test_a_proxy_on_this_machine_makes_nobody_a_client_of_this_machine(at, url, from_elsewhere):
    gateway = at(Address(url=url))
    session = gateway.open_session(SessionSettings(training=True))
    server = gateway._server._server.servers[0].sockets[0].getsockname()[1]
    behind = f"http://127.0.0.1:{server}/{session.credentials.capture}/v1"
    assert post(behind, "EMPTY", headers=from_elsewhere).status_code == 401
    assert post(behind, session.api_key, headers=from_elsewhere).status_code == 200
    assert session.base_url == f"{gateway.url}/{session.credentials.capture}/v1"


def test_in_process_a_url_with_a_path_is_taken_for_the_gateways_own(at):
    gateway = at(Address(url="https://agents.example.com/rl"))
    session = gateway.open_session(SessionSettings(training=True))

    async def call():
        client = openai.AsyncOpenAI(base_url=session.base_url, api_key="EMPTY", http_client=session.http_client)
        await client.chat.completions.create(**BODY)

    asyncio.run(call())
    assert len(session.calls) == 1
