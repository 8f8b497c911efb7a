"""A wire protocol that a plugin brings is served as the gateway's own: over HTTP and in process, errors included."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import httpx2
import pytest
from tests.gateway.conftest import ScriptedBackend
from tests.gateway.telegraph import GATE, Telegraph
from tests.plugins.installing import install

from agentrl.errors import ConfigError
from agentrl.gateway import EngineCompleter, Gateway, RelayCompleter, Session, SessionSettings
from agentrl.gateway.dialects.chat import ChatCompletions
from agentrl.gateway.gateway import registered_dialects
from agentrl.inference.contract import Capabilities, ChatCompletion, ChatRequest
from agentrl.plugins import Plugins

ENTRY = {"agentrl.dialects": {"telegraph": "tests.gateway.telegraph:Telegraph"}}
ANSWER = b"It is 408. STOP"


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plugins]:
    """The installed plugins, and one that brings the telegraph."""
    install(tmp_path, "agentrl-telegraph", ENTRY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("AGENTRL_DISABLE_PLUGINS", raising=False)
    return Plugins


@dataclass
class Office:
    """A gateway with the telegraph, and a way to it."""

    gateway: Gateway
    backend: ScriptedBackend
    library: object
    in_process: bool
    session: Session = field(init=False)

    def __post_init__(self) -> None:
        self.session = self.gateway.open_session(SessionSettings(training=True))

    @property
    def delivered(self) -> list[bool]:
        return [call.delivered for call in self.session.calls]

    def client(self) -> object:
        if self.in_process:
            return self.gateway.http_client(self.library)
        return self.library.AsyncClient(verify=False, timeout=60)  # Certificates take time, and a busy machine too.

    def ask(self, method: str = "POST", path: str = "/telegraph", **request: object) -> httpx.Response:
        """The whole response to one request."""

        async def call():
            async with self.client() as client:
                return await client.request(method, f"{self.session.base_url}{path}", **request)

        return asyncio.run(call())

    @asynccontextmanager
    async def stream(self, text: str = "12 * 34?", **headers: str):
        """The open response to a telegram, which is left as it is at the end."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.session.base_url}/telegraph"
        async with self.client() as client:
            request = client.build_request("POST", url, json={"text": text}, headers=headers)
            yield await client.send(request, stream=True)


WAYS = ["in process, httpx2", "in process, httpx", "HTTP, httpx2", "HTTP, httpx"]


@pytest.fixture(params=WAYS)
def office(request, renderer, plugins) -> Iterator[Office]:
    way, library = request.param.split(", ")
    backend = ScriptedBackend(renderer)
    completer = EngineCompleter(backend, Capabilities(context_length=512, max_concurrency=8), renderer)
    gateway = Gateway(completer, registered_dialects(plugins(), pytest.fail), body_limit=1000)
    gateway.start()
    GATE.set()
    yield Office(gateway, backend, {"httpx": httpx, "httpx2": httpx2}[library], way != "HTTP")
    GATE.set()
    gateway.stop()


def until(condition: Callable[[], bool]) -> None:
    """Over HTTP the server hears of things a moment later, on a thread of its own."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def served_types(plugins: Plugins, warn: Callable[[str], None] = pytest.fail) -> list[type]:
    return [type(each) for each in registered_dialects(plugins, warn)]


def test_it_is_listed_as_other_kinds_are_and_chat_comes_first(plugins):
    assert {"chat", "models", "telegraph"} <= {entry.name for entry in plugins().entries("dialects")}
    first, *others = served_types(plugins())
    assert first is ChatCompletions
    assert Telegraph in others


@pytest.mark.parametrize("one_by_one", [True, False], ids=["iterator", "async iterator"])
def test_a_request_is_recorded_and_answered_in_its_protocol(office, one_by_one):
    office.backend.says("It is 408.")
    headers = {"X-Heat": "0.5"} | ({"X-One-By-One": "1"} if one_by_one else {})
    response = office.ask(json={"text": "12 * 34?"}, headers=headers)
    assert (response.status_code, response.content) == (200, ANSWER)
    assert (response.headers["content-type"], response.headers["x-words"]) == ("text/telegram", "3")
    (call,) = office.session.calls
    assert response.headers["x-request-id"] == call.id
    assert dict(call.request) == {"text": "12 * 34?"}
    assert call.message == {"role": "assistant", "content": "It is 408."}
    assert office.backend.requests[0].sampling.temperature == 0.5, "of a header"
    assert office.session.tree.spans[-1].sampled.call == call.id
    until(lambda: office.delivered == [True])


def test_beside_it_chat_is_served_and_continues_its_conversations(office):
    office.backend.says("It is 408.", "Yes.")
    office.ask(json={"text": "12 * 34?"})
    said = [{"role": "user", "content": "12 * 34?"}, {"role": "assistant", "content": "It is 408."}]
    messages = [*said, {"role": "user", "content": "Sure?"}]
    assert office.ask(path="/chat/completions", json={"messages": messages}).status_code == 200
    first, second = office.session.calls
    assert second.parent == first.id


def test_overrides_reach_it(office):
    office.session = office.gateway.open_session(SessionSettings(training=True, override={"text": "Other?"}))
    office.backend.says("It is 408.")
    office.ask(json={"text": "12 * 34?"})
    assert (office.session.calls[0].request["text"], office.session.calls[0].overridden) == ("Other?", ("text",))


def test_what_needs_no_model_is_answered_at_once_with_what_the_path_says(office):
    response = office.ask("GET", "/offices/Wien/a/b", headers={"User-Agent": "test"})
    assert response.json() == {"office": "Wien", "line": "a/b", "agent": "test"}
    assert office.ask("HEAD", "/offices/Wien/a/b").content == b""
    assert not office.session.calls


def test_the_first_part_is_there_before_the_last_is_written(office):
    office.backend.says("It is 408.")
    GATE.clear()

    async def read():
        async with office.stream() as response:
            parts = response.aiter_raw()
            first = await anext(parts)
            early = office.delivered
            GATE.set()
            return first, early, b"".join([part async for part in parts])

    assert asyncio.run(read()) == (b"It ", [False], b"is 408. STOP")
    until(lambda: office.delivered == [True])


@pytest.mark.parametrize("how", ["close", "cancel", "drop"])
def test_an_answer_whose_client_leaves_on_the_way_is_not_delivered_and_a_retry_gets_it(office, how):
    office.backend.says("It is 408.")
    GATE.clear()

    async def read():
        async with office.stream() as response:
            parts = response.aiter_raw()
            await anext(parts)
            if how == "close":
                await response.aclose()
            elif how == "cancel":
                reading = asyncio.ensure_future(anext(parts))
                await asyncio.sleep(0.01)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    asyncio.run(read())
    gc.collect()  # A response that nobody has closed is in a cycle with its request.
    assert office.delivered == [False]
    GATE.set()
    until(lambda: not office.session.in_flight)
    again = office.ask(json={"text": "12 * 34?"}, headers={"x-stainless-retry-count": "1"})
    assert again.content == ANSWER
    assert again.headers["x-request-id"] == office.session.calls[0].id
    until(lambda: office.delivered == [True])
    assert len(office.session.calls) == 1


def test_an_answer_that_breaks_off_is_an_error_to_its_client_and_not_delivered(office, caplog):
    office.backend.says("It is 408.")

    async def read():
        async with office.stream(x_break="1") as response:
            with pytest.raises(office.library.TransportError):
                await response.aread()

    asyncio.run(read())
    until(lambda: office.delivered == [False] and "the line broke" in caplog.text)
    assert office.ask("GET", "/offices/Wien/a").status_code == 200


def refusals(office: Office) -> dict[str, httpx.Response]:
    """The response to every kind of request that the gateway itself refuses."""
    closed = office.gateway.open_session(SessionSettings(training=True))
    closed.close()
    base, office.session.base_url = office.session.base_url, closed.base_url
    late = office.ask(json={"text": "x"})
    office.session.base_url = f"{office.gateway.url}/v1"
    strange = office.ask(json={"text": "x"}, headers={"authorization": "Bearer unknown"})
    office.session.base_url = base
    return {
        "404": late,
        "401": strange,
        "405": office.ask("PUT"),
        "413": office.ask(content=b"x" * 2000),
        "400": office.ask(content=b"{"),
        "500": office.ask(json={"text": "a fault"}),
    }


def test_errors_of_the_gateway_are_written_in_the_shape_of_the_routes_protocol(office, caplog):
    for status, response in refusals(office).items():
        assert response.status_code == int(status)
        assert response.text.startswith(f"REFUSED {status} "), response.text
        assert response.headers["content-type"] == "text/telegram"
        assert response.headers["x-should-retry"] == "false"
    assert office.ask("PUT").headers["allow"] == "POST, OPTIONS"
    assert not office.session.calls


def test_an_unknown_route_and_a_protocol_that_fails_to_refuse_are_written_as_chat_does(office, caplog):
    unknown = office.ask(path="/telegrams", json={})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")
    assert "POST /v1/telegraph, GET /v1/offices/OFFICE/LINE" in unknown.json()["error"]["message"].replace(" and", ",")
    failed = office.ask(json={})
    assert (failed.status_code, failed.json()["error"]["code"]) == (400, "no_text")
    assert "nor can it say so" in caplog.text


def test_a_size_that_is_declared_is_refused_in_its_shape_before_the_body_is_there(renderer, plugins):
    completer = EngineCompleter(ScriptedBackend(renderer), Capabilities(512, 8), renderer)
    gateway = Gateway(completer, registered_dialects(plugins(), pytest.fail), body_limit=1000)
    gateway.start()
    url = f"{gateway.open_session(SessionSettings(training=True)).base_url}/telegraph"
    try:
        response = httpx2.post(url, content=b"x" * 100_000, trust_env=False)
    finally:
        gateway.stop()
    assert response.text.startswith("REFUSED 413")


def test_a_disabled_one_is_not_served(plugins):
    assert Telegraph not in served_types(plugins(["telegraph"]))
    assert ChatCompletions not in served_types(plugins(["chat"]))


def test_one_that_does_not_load_is_told_of_and_the_others_are_served(plugins, tmp_path):
    install(tmp_path, "agentrl-broken", {"agentrl.dialects": {"broken": "not_there:Thing"}})
    warnings = []
    assert {ChatCompletions, Telegraph} <= set(served_types(plugins(), warnings.append))
    (warning,) = warnings
    assert warning.startswith("the dialect 'broken' of agentrl-broken")
    assert "not_there" in warning


def test_a_route_that_two_serve_is_an_error_that_names_both(renderer):
    completer = EngineCompleter(ScriptedBackend(renderer), Capabilities(512, 8), renderer)

    class Other(Telegraph):
        routes = (*Telegraph.routes[:0], type(Telegraph.routes[1])("/offices/{city}/{rest:path}"))

    with pytest.raises(ConfigError, match=r"/offices/\{city\}.*Telegraph and .*Other \(disable the plugin of one"):
        Gateway(completer, [Telegraph(), Other()])
    with pytest.raises(ConfigError, match="no wire protocol to serve"):
        Gateway(completer, [])


def test_an_endpoint_elsewhere_is_asked_in_its_own_protocol_for_one_that_speaks_another():
    asked = []

    class Endpoint:
        async def complete(self, request: ChatRequest) -> ChatCompletion:
            asked.append(request.body)
            message = {"role": "assistant", "content": "It is 408."}
            return ChatCompletion({"choices": [{"message": message}]}, message, "stop", 9, 4)

    gateway = Gateway(RelayCompleter(Endpoint()), [ChatCompletions(), Telegraph()])
    office = Office(gateway, None, httpx2, in_process=True)
    assert office.ask(json={"text": "12 * 34?"}, headers={"x-heat": "0.5"}).content == ANSWER
    assert asked == [{"messages": [{"role": "user", "content": "12 * 34?"}], "temperature": 0.5}]
    gateway.stop()


def test_many_streams_at_once_keep_apart(office):
    number = 20
    office.backend.script = [
        office.backend.chunk(office.backend.renderer.vocabulary.encode(f"n {n}")) for n in range(number)
    ]

    async def read(text):
        async with office.stream(text) as response:
            return await response.aread()

    async def read_all():
        return await asyncio.gather(*(read(f"{n}?") for n in range(number)))

    assert sorted(asyncio.run(read_all())) == sorted(f"n {n} STOP".encode() for n in range(number))
    until(lambda: office.delivered == [True] * number)
