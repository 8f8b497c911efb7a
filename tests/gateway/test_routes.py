"""What is served below a base URL: every path, every method, however the URL was joined."""

from __future__ import annotations

import asyncio

import pytest

from agentrl.gateway.routes import split_path

ASK = {"role": "user", "content": "What is 12 * 34?"}
CHAT = ("POST", "OPTIONS")
MODELS = ("GET", "HEAD", "OPTIONS")


def ask(connection, method, url, **request):
    """The response to a request with the HTTP client alone."""

    async def call():
        client = connection.http_client()
        response = await client.request(method, url, **request)
        await client.aclose()
        return response

    return asyncio.run(call())


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "POST", "OPTIONS", "PURGE"])
@pytest.mark.parametrize(
    ("path", "methods"), [("/chat/completions", CHAT), ("/models", MODELS), ("/models/gpt-4o", MODELS)]
)
def test_a_method_that_a_path_does_not_take_is_a_405_that_names_those_it_does(
    connection, backend, open_session, method, path, methods
):
    session = open_session()
    body = {"json": {"messages": [ASK]}} if method == "POST" else {}
    backend.script = [backend.chunk([5, backend.end])]
    response = ask(connection, method, session.base_url + path, **body)
    if method in methods:
        assert response.status_code == (204 if method == "OPTIONS" else 200)
    else:
        assert response.status_code == 405
    if method not in methods or method == "OPTIONS":
        assert response.headers["allow"] == ", ".join(methods)
    if response.status_code == 405 and method != "HEAD":
        assert response.json()["error"]["code"] == "method_not_allowed"
    if method in ("HEAD", "OPTIONS"):
        assert response.content == b""


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/embeddings", "/chat", "/chat/completions/x", "/modelsx", ""])
def test_a_path_that_there_is_not_is_a_404_whatever_the_method(connection, open_session, method, path):
    session = open_session()
    response = ask(connection, method, session.base_url + path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_url")
    assert session.base_url.split("/")[3] not in response.text


@pytest.mark.parametrize("name", ["gpt-4o", "Qwen/Qwen3-0.6B", "policy", "a model:7b", "ü"])
def test_a_model_is_there_under_any_name(connection, open_session, name):
    session = open_session()

    async def retrieve():
        async with connection.client(session) as client:
            return await client.models.retrieve(name), await client.models.list()

    model, models = asyncio.run(retrieve())
    assert (model.id, model.object, model.owned_by) == (name, "model", "agentrl")
    assert [each.id for each in models.data] == [session.settings.model]


@pytest.mark.parametrize(
    "path", ["/chat/completions", "/chat/completions/", "//chat/completions", "/chat//completions//"]
)
def test_a_slash_too_many_changes_nothing(connection, backend, open_session, path):
    session = open_session()
    backend.says("It is 408.")
    response = ask(connection, "POST", session.base_url + path, json={"messages": [ASK]})
    assert response.json()["choices"][0]["message"]["content"] == "It is 408."
    assert len(session.calls) == 1


def test_a_base_url_with_a_slash_at_its_end_is_the_same(connection, backend, open_session):
    session = open_session()
    backend.says("It is 408.")

    async def create():
        async with connection.client(session, base_url=session.base_url + "/") as client:
            await client.models.list()
            return await client.chat.completions.create(model="x", messages=[ASK])

    assert asyncio.run(create()).id == session.calls[0].id


@pytest.mark.parametrize(
    ("path", "route", "capture"),
    [
        ("/v1/models", "/models", None),
        ("/capture-x/v1/models/", "/models", "capture-x"),
        ("//capture-x//v1//models", "/models", "capture-x"),
        ("/capture-x/models", "/models", "capture-x"),
        ("/capture-x/openai/v1/models", "/models", "capture-x"),
        ("/v1/v1/models", "/models", None),
        ("/", "", None),
        ("*", "*", None),
        ("", "", None),
    ],
)
def test_a_path_is_taken_apart_wherever_its_base_ends(path, route, capture):
    assert split_path(path) == (capture, route)


def test_what_is_refused_says_what_there_is(in_process, open_session):
    session = open_session()
    missing = ask(in_process, "POST", f"{session.base_url}/embeddings")
    wrong = ask(in_process, "PUT", f"{session.base_url}/chat/completions")
    for known in ("POST /v1/chat/completions", "POST /v1/messages", "GET /v1/models, GET /v1/models/NAME"):
        assert known in missing.json()["error"]["message"]
    assert "takes no PUT (use POST)" in wrong.json()["error"]["message"]
    assert len(session.refusals) == 2
