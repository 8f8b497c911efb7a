"""What no client should send, in every protocol: a 4xx in its own shape, nothing recorded, and the session goes on."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gateway.conftest import CONTEXT, ScriptedBackend
from tests.gateway.protocols import PROTOCOLS, WireProtocol

from agentrl.errors import GatewayError
from agentrl.gateway import EngineCompleter, Gateway, Session, SessionSettings
from agentrl.gateway.contract import Exchange
from agentrl.inference.contract import Capabilities, Chunk, GenerationRequest

DEEP = 50_000
EVERYTHING = Capabilities(CONTEXT, 8, sampling=Capabilities(1, 1).sampling | {"grammar", "logit_bias"})


class Answering(ScriptedBackend):
    """Answers everything alike."""

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        self.says("It is 408.")
        async for chunk in super().generate(request):
            yield chunk


@pytest.fixture(scope="module")
def gateway(renderer) -> Iterator[Gateway]:
    gateway = Gateway(EngineCompleter(Answering(renderer), EVERYTHING, renderer), body_limit=1_000_000)
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def session(gateway) -> Session:
    return gateway.open_session(SessionSettings(training=True))


def send(gateway: Gateway, session: Session, protocol: WireProtocol, body: bytes) -> tuple[int, bytes]:
    """The status and the whole body of the answer."""

    async def answer() -> tuple[int, bytes]:
        key = {"authorization": f"Bearer {session.api_key}"}
        reply = await gateway.answer(Exchange("POST", f"/v1{protocol.path}", body, key, in_process=True))
        if isinstance(reply.body, bytes):
            return reply.status, reply.body
        return reply.status, b"".join([part async for part in reply.body])

    return asyncio.run(answer())


def check(gateway: Gateway, session: Session, protocol: WireProtocol, body: bytes) -> int:
    """Send ``body`` and hold the answer to the law; returns its status."""
    before = (len(session.calls), len(session.tree), len(gateway.completer.backend.requests))
    status, answer = send(gateway, session, protocol, body)
    assert status == 200 or 400 <= status < 500, answer
    if status != 200:
        protocol.error(json.loads(answer), status)
        assert before == (len(session.calls), len(session.tree), len(gateway.completer.backend.requests))
    return status


def goes_on(gateway: Gateway, session: Session, protocol: WireProtocol) -> None:
    calls = len(session.calls)
    status, answer = send(gateway, session, protocol, json.dumps(protocol.request).encode())
    assert status == 200, answer
    assert len(session.calls) == calls + 1


def put(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """A copy of ``value`` with ``new`` at ``path``."""
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = put(value[path[0]], path[1:], new)
    return changed


def paths(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of everything in a JSON value."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield from paths(part, (*at, key))


every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)


@every_protocol
def test_the_request_of_the_table_is_right(gateway, session, protocol):
    goes_on(gateway, session, protocol)


MALFORMED = [
    b"",
    b"{",
    b"[1]",
    b"null",
    b'"x"',
    b"1",
    b"\xff\xfe",
    b"{}}",
    b"{'a': 1}",
    b'{"a": 1,}',
    b"\x00",
    b"[" * DEEP,
]


@every_protocol
@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:10]))
def test_a_body_that_is_no_json_object_is_a_400(gateway, session, protocol, body):
    assert check(gateway, session, protocol, body) == 400
    goes_on(gateway, session, protocol)


@every_protocol
@pytest.mark.parametrize("escape", [r"\ud800", r"a\udfffb"])
def test_half_a_character_is_a_400(gateway, session, protocol, escape):
    for path in protocol.texts:
        body = json.dumps(put(protocol.request, path, "HALF")).replace("HALF", escape)
        assert check(gateway, session, protocol, body.encode()) == 400
    goes_on(gateway, session, protocol)


@every_protocol
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 400, "-1", "true", '"hot"'])
def test_a_temperature_that_is_none_is_a_400(gateway, session, protocol, number):
    body = json.dumps(protocol.request | {"temperature": "HOT"}).replace('"HOT"', number)
    assert check(gateway, session, protocol, body.encode()) == 400
    goes_on(gateway, session, protocol)


@every_protocol
def test_an_unknown_field_an_image_and_a_prompt_that_does_not_fit_are_a_400(gateway, session, protocol):
    for body in (
        protocol.request | {"temprature": 1.0},
        protocol.image(protocol.request),
        put(protocol.request, protocol.texts[0], "x " * 2 * CONTEXT),
    ):
        assert check(gateway, session, protocol, json.dumps(body).encode()) == 400
    goes_on(gateway, session, protocol)


@every_protocol
def test_a_body_over_the_limit_is_a_413(gateway, session, protocol):
    assert check(gateway, session, protocol, b" " * 1_000_001) == 413
    goes_on(gateway, session, protocol)


@every_protocol
def test_deep_nesting_is_no_fault_anywhere(gateway, session, protocol):
    nested = json.dumps(protocol.request | {"metadata": "DEEP"}).replace('"DEEP"', '{"a":' * DEEP + "1" + "}" * DEEP)
    check(gateway, session, protocol, nested.encode())
    for path in protocol.texts:
        body = json.dumps(put(protocol.request, path, "DEEP")).replace('"DEEP"', "[" * 400 + "]" * 400)
        assert check(gateway, session, protocol, body.encode()) == 400
    goes_on(gateway, session, protocol)


@every_protocol
def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(gateway, session, protocol, monkeypatch, renderer):
    text = "word " * 100 * CONTEXT
    body = json.dumps(put(protocol.request, protocol.texts[-1], text)).encode()
    monkeypatch.setattr(type(renderer), "render", lambda *_, **__: pytest.fail("it was rendered"))
    monkeypatch.setattr(type(renderer.vocabulary), "encode", lambda *_, **__: pytest.fail("it was encoded"))
    assert check(gateway, session, protocol, body) == 400
    monkeypatch.undo()
    goes_on(gateway, session, protocol)


@pytest.mark.parametrize(
    ("path", "field"), [("messages/count_tokens", "messages"), ("responses/input_tokens", "input")]
)
def test_nor_is_a_text_counted_that_cannot_fit(gateway, session, path, field, monkeypatch, renderer):
    monkeypatch.setattr(type(renderer.vocabulary), "encode", lambda *_, **__: pytest.fail("it was encoded"))
    body = {"model": "any", field: [{"role": "user", "content": "word " * 100 * CONTEXT}]}
    key = {"authorization": f"Bearer {session.api_key}"}
    exchange = Exchange("POST", f"/v1/{path}", json.dumps(body).encode(), key, in_process=True)
    reply = asyncio.run(gateway.answer(exchange))
    assert (reply.status, b"cannot fit in the context" in reply.body) == (400, True)


def test_a_session_remembers_the_latest_of_many_refusals(gateway, session):
    for number in range(1100):
        session.refuse(GatewayError(f"{number}"))
    assert [str(error) for error in (session.refusals[0], session.refusals[-1])] == ["100", "1099"]


WRONG = (5, -1, 1.5, 10**40, "x", "", True, [], {}, [[]], [{}], ["x"], {"type": "x"}, {"type": 5}, {"a": {}}, None)


@every_protocol
def test_a_wrong_type_anywhere_is_no_fault(gateway, session, protocol):
    """Every part of a right request is replaced by every kind of value in turn."""
    refused = 0
    for path in paths(protocol.request):
        for wrong in WRONG:
            body = json.dumps(put(protocol.request, path, wrong)).encode()
            refused += check(gateway, session, protocol, body) != 200
    assert refused > len(WRONG)
    goes_on(gateway, session, protocol)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_request_changed_at_random_is_answered_or_refused(gateway, protocol, data):
    session = gateway.open_session(SessionSettings(training=data.draw(st.booleans())))
    body: Any = protocol.request
    known: list[Any] = list(paths(protocol.request))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(known))
        try:
            body = put(body, path, data.draw(JSON))
        except (TypeError, KeyError, IndexError):  # An earlier change has removed the place.
            continue
    if isinstance(body, Mapping) and data.draw(st.booleans()):
        body = {**body, data.draw(st.text(max_size=8)): data.draw(JSON)}
    check(gateway, session, protocol, json.dumps(body).encode())
    goes_on(gateway, session, protocol)
    session.close()


@every_protocol
@pytest.mark.parametrize("body", MALFORMED[:4], ids=repr)
def test_over_http_it_is_the_same(gateway, session, protocol, body):
    url = f"{session.base_url}{protocol.path}"
    with httpx2.Client(trust_env=False, verify=False) as client:
        response = client.post(url, content=body)
        assert response.status_code == 400
        protocol.error(response.json(), 400)
        assert client.post(url, json=protocol.request).status_code == 200
    assert len(session.calls) == 1
