"""Errors in the shape of the Messages API, and credentials as its clients send them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import anthropic
import httpx2
import pytest
from tests.gateway.conftest import CONTEXT
from tests.gateway.messages.conftest import ASK, Caller

from agentrl.errors import BackendError
from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.inference.contract import Capabilities, Chunk, GenerationRequest

BODY = json.dumps({"model": "any", "max_tokens": 100, "messages": ASK})


def send(session, method="POST", path="/messages", content=BODY, **headers):
    """One plain request, without what an SDK would do about it."""
    headers = {"x-api-key": session.api_key} | headers
    with httpx2.Client(trust_env=False) as client:
        return client.request(method, session.base_url + path, content=content, headers=headers)


ERRORS = {
    "an unknown key": (401, "authentication_error"),
    "a closed session": (404, "not_found_error"),
    "a wrong method": (405, "invalid_request_error"),
    "no JSON": (400, "invalid_request_error"),
    "no object": (400, "invalid_request_error"),
    "a body that is too large": (413, "request_too_large"),
}
OF_THE_MODEL = {"a broken engine": (503, "api_error"), "a bug": (500, "api_error")}


@pytest.mark.parametrize(
    ("path", "error"),
    [
        *(("/messages", error) for error in [*ERRORS, *OF_THE_MODEL]),
        *(("/messages/count_tokens?beta=true", error) for error in ERRORS),
    ],
)
def test_every_error_has_the_shape_of_the_api(gateway, open_session, backend, monkeypatch, path, error):
    status, kind = (ERRORS | OF_THE_MODEL)[error]
    session = open_session()
    method, content, headers = "POST", BODY, {}
    match error:
        case "an unknown key":
            other = open_session()
            headers = {"x-api-key": other.api_key}
        case "a closed session":
            session.close()
        case "a wrong method":
            method = "DELETE"
        case "no JSON":
            content = "{"
        case "no object":
            content = "[]"
        case "a body that is too large":
            monkeypatch.setattr(gateway, "body_limit", 10)
        case "a broken engine":
            backend.script.append(BackendError("the engine broke"))
        case "a bug":
            monkeypatch.setattr(type(gateway.completer), "complete", _fails)
    response = send(session, method, path, content, **headers)
    assert response.status_code == status
    body = response.json()
    assert body.keys() == {"type", "error", "request_id"}
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["error"]["message"]
    assert response.headers["request-id"] == body["request_id"]


async def _fails(*args, **kwargs):
    raise ZeroDivisionError("division by zero")


def test_a_history_that_is_too_long_is_told_in_the_words_that_clients_look_for(asks, open_session, backend):
    session = open_session()
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: the messages come to") as caught:
        asks.ask(session, [{"role": "user", "content": "12 * 34 " * CONTEXT}])
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert not session.calls


@pytest.mark.parametrize("place", ["in process", "HTTP"])
def test_both_headers_of_credentials_open_a_session(gateway, open_session, backend, place):
    session = open_session()
    outside = Caller(gateway, place == "in process", "whole")
    url = f"{gateway.url}/v1"  # Without the capture token, which would open the session by itself.
    for credentials in ({"auth_token": session.api_key, "api_key": None}, {"api_key": session.api_key}):
        backend.says("It is 408.")

        async def run(credentials=credentials):
            async with outside.client(session, base_url=url, **credentials) as client:
                await client.messages.create(model="any", max_tokens=9, messages=ASK)

        asyncio.run(run())
    backend.says("It is 408.")
    with httpx2.Client(trust_env=False) as client:
        assert client.post(f"{url}/messages", content=BODY, headers={"x-api-key": session.api_key}).is_success
        assert client.post(f"{url}/messages", content=BODY).status_code == 401
    assert len(session.calls) == 3


class BreaksOff:
    """Says three tokens, and breaks."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        for token in range(3):
            await asyncio.sleep(0)
            yield Chunk((100 + token,), (-0.5,), (0,))
        await asyncio.sleep(0.05)
        raise BackendError("the engine broke")


@pytest.mark.parametrize("place", ["in process", "HTTP"])
def test_an_answer_that_breaks_off_is_told_in_the_stream(renderer, place):
    gateway = Gateway(EngineCompleter(BreaksOff(), Capabilities(CONTEXT, 8), renderer))
    gateway.start()
    try:
        session = gateway.open_session(SessionSettings(training=True))
        with pytest.raises(anthropic.APIStatusError, match="the engine broke") as caught:
            Caller(gateway, place == "in process", "stream()").ask(session)
        assert caught.value.body["error"]["type"] == "api_error"
        assert not session.calls
        assert [str(error) for error in session.refusals] == ["the engine broke"]
    finally:
        gateway.stop()


def test_a_retry_of_the_sdk_is_one_call(gateway, open_session, backend):
    backend.script.append(BackendError("the engine broke"))
    backend.says("It is 408.")
    session = open_session()

    async def run():
        client = Caller(gateway, True, "whole").client(session, max_retries=2)
        async with client.messages.stream(model="any", max_tokens=100, messages=ASK) as stream:
            return await stream.get_final_message()

    assert asyncio.run(run()).content[0].text == "It is 408."
    assert len(session.calls) == 1
