"""A proxy in the environment: whatever client an agent makes, what goes to the gateway goes there directly."""

from __future__ import annotations

import asyncio
import os
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import httpx2
import openai
import pytest

from agentrl.clients import direct_loopback
from agentrl.config import load_config
from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.inference.contract import Capabilities
from agentrl.plugins import Plugins
from agentrl.rollout.inline import InlineRunner
from agentrl.training.parts import resolve_executor

ASK = {"role": "user", "content": "What is 12 * 34?"}
BODY = {"model": "x", "messages": [ASK]}
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class Proxy(BaseHTTPRequestHandler):
    """Writes down what it was asked for, and fetches nothing."""

    asked: list[str]

    def do_POST(self) -> None:
        self.asked.append(self.path)
        self.send_error(502)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def proxy():
    Proxy.asked = []
    with HTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def environment(monkeypatch):
    """The process's own, without proxies; whatever is set in a test is gone after it."""
    for name in (*NAMES, *map(str.lower, NAMES)):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def serving(backend, renderer):
    """Starts a gateway in the environment as it then is."""
    gateway = Gateway(EngineCompleter(backend, Capabilities(context_length=1024, max_concurrency=8), renderer))

    def serving():
        gateway.start()
        return gateway.open_session(SessionSettings(training=True))

    yield serving
    gateway.stop()


def with_openai(session):
    with openai.OpenAI(base_url=session.base_url, api_key=session.api_key, max_retries=0) as client:
        client.chat.completions.create(**BODY)


def with_async_openai(session):
    async def call():
        async with openai.AsyncOpenAI(base_url=session.base_url, api_key=session.api_key, max_retries=0) as client:
            await client.chat.completions.create(**BODY)

    asyncio.run(call())


def with_client(library):
    def call(session):
        with library.Client(verify=False) as client:
            client.post(f"{session.base_url}/chat/completions", json=BODY).raise_for_status()

    return call


def with_async_client(library):
    def call(session):
        async def post():
            async with library.AsyncClient(verify=False) as client:
                (await client.post(f"{session.base_url}/chat/completions", json=BODY)).raise_for_status()

        asyncio.run(post())

    return call


def with_urllib(session):
    body = b'{"messages": [{"role": "user", "content": "x"}]}'
    urllib.request.urlopen(urllib.request.Request(f"{session.base_url}/chat/completions", body, method="POST")).read()


CLIENTS = {
    "openai": with_openai,
    "openai, async": with_async_openai,
    "httpx": with_client(httpx),
    "httpx, async": with_async_client(httpx),
    "httpx2": with_client(httpx2),
    "httpx2, async": with_async_client(httpx2),
    "urllib": with_urllib,
}


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("call", CLIENTS.values(), ids=CLIENTS)
def test_an_agents_own_client_reaches_the_gateway_past_the_proxy(environment, proxy, serving, backend, call, variable):
    environment.setenv(variable, proxy)
    session = serving()
    Proxy.asked.clear()
    backend.says("It is 408.")
    call(session)
    assert len(session.calls) == 1
    assert Proxy.asked == []


AGENT = """
import httpx

CLIENT = httpx.Client(verify=False)


async def run(data, *, base_url):
    with CLIENT:
        return CLIENT.post(f"{base_url}/chat/completions", json=data).status_code
"""


def test_so_does_one_that_an_agents_module_makes_when_it_is_imported(environment, proxy, serving, backend, tmp_path):
    environment.setenv("HTTP_PROXY", proxy)
    Proxy.asked.clear()
    (tmp_path / "early.py").write_text(AGENT)
    config = load_config(None, f"agent.name={tmp_path / 'early.py'}:run", environ={})
    agent = resolve_executor(config, Plugins(environ={}))
    session = serving()
    connection = {"base_url": session.base_url, "api_key": session.api_key, "model": "x", "http_client": None}
    backend.says("It is 408.")
    run = InlineRunner(agent.agent).run(BODY, connection, deadline_s=60, activity=str)
    assert (asyncio.run(run), Proxy.asked) == (200, [])


def test_everything_else_still_goes_through_the_proxy(environment, proxy, serving):
    environment.setenv("HTTP_PROXY", proxy)
    serving()
    Proxy.asked.clear()
    assert httpx.get("http://elsewhere.invalid/x").status_code == 502
    assert Proxy.asked == ["http://elsewhere.invalid/x"]


def test_without_a_proxy_the_environment_stays_as_it_is(environment, serving):
    before = dict(os.environ)
    serving()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ({}, "127.0.0.1,localhost"),
        ({"NO_PROXY": "intranet"}, "intranet,127.0.0.1,localhost"),
        ({"no_proxy": "intranet, .corp"}, "intranet,.corp,127.0.0.1,localhost"),
        ({"NO_PROXY": "one", "no_proxy": "two,one"}, "one,two,127.0.0.1,localhost"),
        ({"no_proxy": "localhost,127.0.0.1"}, "localhost,127.0.0.1"),
        ({"NO_PROXY": "*"}, "*"),
        ({"NO_PROXY": "", "no_proxy": ","}, "127.0.0.1,localhost"),
    ],
)
def test_hosts_that_were_reached_directly_before_still_are(given, hosts):
    assert direct_loopback({"all_proxy": "http://proxy", **given}) == {"NO_PROXY": hosts, "no_proxy": hosts}


@pytest.mark.parametrize("name", ["FTP_PROXY", "HTTP_PROXY", "NO_PROXY"])
def test_what_names_no_proxy_changes_nothing(name):
    assert direct_loopback({name: "" if name == "HTTP_PROXY" else "x"}) == {}
