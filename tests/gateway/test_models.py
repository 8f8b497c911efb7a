"""The models of a session, in the shapes that clients of three kinds read."""

from __future__ import annotations

import asyncio

import openai
import pytest
from tests.gateway.conftest import CONTEXT

from agentrl.gateway import Gateway, RelayCompleter, SessionSettings
from agentrl.gateway.contract import Exchange


@pytest.fixture
def get(http, open_session):
    """The JSON at a path of a session, whose model is ``policy``."""

    def get(path, **headers):
        async def ask():
            async with http.client(open_session(model="policy")) as client:
                return await client.get(path, cast_to=object, options={"headers": headers})

        return asyncio.run(ask())

    return get


def test_the_list_holds_the_sessions_model_and_the_length_of_its_context(get):
    body = get("/models")
    assert body["object"] == "list"
    (model,) = body["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("policy", "model", "agentrl")
    assert {model[name] for name in ("max_model_len", "context_length", "context_window")} == {CONTEXT}


def test_every_name_is_a_model(connection, open_session):
    async def retrieve():
        async with connection.client(open_session()) as client:
            return await client.models.retrieve("Qwen/Qwen3-0.6B")

    assert asyncio.run(retrieve()).id == "Qwen/Qwen3-0.6B"


def test_codex_finds_what_it_needs_to_know_of_a_model(get):
    (model,) = get("/models")["models"]
    required = {"slug", "display_name", "supported_reasoning_levels", "shell_type", "visibility", "supported_in_api"}
    required |= {"priority", "base_instructions", "supports_reasoning_summaries", "support_verbosity"}
    required |= {"truncation_policy", "supports_parallel_tool_calls", "experimental_supported_tools"}
    assert required <= model.keys()
    assert (model["slug"], model["context_window"]) == ("policy", CONTEXT)


def test_a_client_of_the_anthropic_api_is_answered_in_its_shape(get):
    version = {"anthropic-version": "2023-06-01"}
    body = get("/models", **version)
    assert (body["has_more"], body["first_id"], body["last_id"]) == (False, "policy", "policy")
    (model,) = body["data"]
    assert (model["type"], model["id"], model["display_name"]) == ("model", "policy", "policy")
    assert model["created_at"].endswith("Z")
    assert get("/models/claude-x", **version)["id"] == "claude-x"


def test_where_requests_are_passed_on_no_length_is_known():
    gateway = Gateway(RelayCompleter(None))
    session = gateway.open_session(SessionSettings(training=False))
    key = {"authorization": f"Bearer {session.api_key}"}
    reply = asyncio.run(gateway.answer(Exchange("GET", "/v1/models", headers=key)))
    assert b"max_model_len" not in reply.body
    gateway.stop()


def test_a_method_that_it_does_not_take_is_refused(connection, open_session):
    async def post():
        async with connection.client(open_session(), max_retries=0) as client:
            await client.post("/models", cast_to=object, body={})

    with pytest.raises(openai.APIStatusError) as error:
        asyncio.run(post())
    assert error.value.status_code == 405
