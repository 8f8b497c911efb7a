"""Who may call: a key or a capture token, never another episode's."""

from __future__ import annotations

import asyncio
import logging

import openai
import pytest

from agentrl.gateway.contract import Exchange
from agentrl.gateway.session import new_credentials, session_of
from agentrl.redaction import redact

ASK = {"role": "user", "content": "What is 12 * 34?"}


def call(connection, session, **options):
    async def create():
        async with connection.client(session, **options) as client:
            return await client.chat.completions.create(model="x", messages=[ASK])

    return asyncio.run(create())


def test_the_base_url_alone_is_enough_whatever_the_key(connection, backend, open_session):
    backend.says("It is 408.")
    session = open_session()
    call(connection, session, api_key="EMPTY")
    assert len(session.calls) == 1


def test_the_key_alone_is_enough(connection, backend, gateway, open_session):
    backend.says("It is 408.")
    session = open_session()
    call(connection, session, base_url=f"{gateway.url}/v1")
    assert len(session.calls) == 1


def test_in_process_the_key_captures_an_agent_that_never_set_a_base_url(in_process, backend, open_session):
    backend.says("It is 408.")
    session = open_session()
    call(in_process, session, base_url=None)
    assert len(session.calls) == 1


def test_another_live_sessions_key_is_a_401(connection, open_session, answered):
    session, other = open_session(), open_session()
    with pytest.raises(openai.AuthenticationError, match="use the base_url and api_key of one episode together"):
        call(connection, session, api_key=other.api_key)
    assert (len(answered), session.calls, other.calls) == (1, (), ())


def test_a_key_of_a_closed_session_beside_a_live_base_url_is_like_any_unknown_key(connection, backend, open_session):
    backend.says("It is 408.")
    session, other = open_session(), open_session()
    other.close()
    call(connection, session, api_key=other.api_key)
    assert len(session.calls) == 1


def test_no_key_at_all_is_a_401_that_says_so(gateway, open_session):
    bare = exchange(open_session(), path="/v1/chat/completions")
    reply = asyncio.run(gateway.answer(bare))
    assert reply.status == 401
    assert b"the request has no key" in reply.body


@pytest.mark.parametrize("key", ["EMPTY", "sk-agentrl-0123456789ab-" + "x" * 43])
def test_an_unknown_key_alone_is_a_401(connection, gateway, open_session, key):
    with pytest.raises(openai.AuthenticationError, match="no session has the key"):
        call(connection, open_session(), api_key=key, base_url=f"{gateway.url}/v1")


def test_a_guessed_capture_token_is_a_401(connection, gateway, open_session):
    session = open_session()
    guess = f"{gateway.url}/capture-{session.id}-{'x' * 43}/v1"
    with pytest.raises(openai.AuthenticationError, match="no session has the base URL"):
        call(connection, session, base_url=guess, api_key="EMPTY")


@pytest.mark.parametrize("header", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer   {} ", " bearer {}", "{}"])
def test_the_scheme_before_the_key_may_be_written_in_any_case(gateway, backend, open_session, header):
    session = open_session()
    backend.says("It is 408.")
    authorization = header.format(session.api_key)
    assert gateway.captures(authorization)
    reply = asyncio.run(gateway.answer(exchange(session, path="/v1/chat/completions", authorization=authorization)))
    assert reply.status == 200


@pytest.mark.parametrize("header", ["Basic {}", "Bearer", "Bearer Bearer {}", "Bearer {} {}"])
def test_another_scheme_is_a_401(gateway, open_session, header):
    session = open_session()
    authorization = header.format(session.api_key, session.api_key)
    reply = asyncio.run(gateway.answer(exchange(session, path="/v1/chat/completions", authorization=authorization)))
    assert (reply.status, gateway.captures(authorization)) == (401, False)


def exchange(session, authorization=None, **changes):
    path = session.base_url.split("/", 3)[3]
    fields = {
        "method": "POST",
        "path": f"/{path}/chat/completions",
        "body": b'{"messages": [{"role": "user", "content": "x"}]}',
    }
    if authorization is not None:
        fields["headers"] = {"authorization": authorization}
    return Exchange(**(fields | changes))


def test_from_another_machine_the_capture_token_needs_the_key_beside_it(gateway, backend, open_session):
    session = open_session()
    backend.says("It is 408.")
    alone = asyncio.run(gateway.answer(exchange(session, loopback=False, authorization="Bearer EMPTY")))
    both = asyncio.run(gateway.answer(exchange(session, loopback=False, authorization=f"Bearer {session.api_key}")))
    assert (alone.status, both.status) == (401, 200)


def test_credentials_are_long_random_and_named_by_a_public_id():
    first, second = new_credentials(), new_credentials()
    assert first != second
    for secret in (first.key, first.capture):
        assert session_of(secret) == first.session
        assert len(secret.rpartition(f"{first.session}-")[2]) == 43  # 256 bits in base64.
        assert secret not in repr(first)
    assert session_of("sk-agentrl-nonsense") is None


def test_secrets_show_in_no_log_and_no_representation(connection, backend, open_session, caplog):
    backend.says("It is 408.")
    session = open_session()
    # What a client writes of its own requests at DEBUG is the choice of whoever turned that on.
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.INFO, logger="openai"):
        call(connection, session)
        with pytest.raises(openai.NotFoundError):
            asyncio.run(raw(connection, session))
    secrets = [secret[-43:] for secret in (session.api_key, session.base_url.split("/")[3])]
    shown = [caplog.text, repr(session), repr(session.calls), *map(str, session.refusals), repr(exchange(session))]
    assert "HTTP Request: POST" in caplog.text
    for text in shown:
        assert not any(secret in text for secret in secrets)


async def raw(connection, session):
    async with connection.client(session) as client:
        await client.embeddings.create(model="x", input="y")


def test_redaction_keeps_the_public_id():
    credentials = new_credentials()
    text = redact(f"GET http://127.0.0.1/{credentials.capture}/v1 with {credentials.key}")
    assert text == f"GET http://127.0.0.1/capture-{credentials.session}-…/v1 with sk-agentrl-{credentials.session}-…"
