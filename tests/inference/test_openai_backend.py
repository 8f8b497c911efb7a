"""The chat backend ``openai`` before endpoints that answer, refuse, break and hang."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agentrl.config.models import InferenceSection
from agentrl.costs.contract import Usage
from agentrl.errors import BackendError, ConfigError, GatewayError
from agentrl.gateway.contract import CONTEXT_EXCEEDED
from agentrl.inference.contract import Backend, ChatBackend, ChatContext, ChatRequest
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.openai import backend as backend_module
from agentrl.inference.openai.backend import ModelSupport, OpenAIBackend, request_body
from agentrl.inference.openai.endpoint import Endpoint, OpenAISettings, make_client
from agentrl.plugins import Plugins

KEY = "sk-real-0123456789"
HANGS = "hangs"
MESSAGES = [{"role": "user", "content": "What is 1 + 1?"}]
REASONS = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
    "temperature": "Unsupported value: 'temperature' does not support 0 with this model.",
}


def completion(text: str = "It is 2.", **fields: object) -> dict[str, object]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    return {"id": "same-for-all", "object": "chat.completion", "choices": [choice], "usage": usage} | fields


def error(message: str, **fields: object) -> dict[str, object]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None} | fields}


@dataclass
class FakeEndpoint:
    """Answers each request as ``answer`` says: a status and a body, or ``HANGS``."""

    url: str = ""
    bodies: list[dict] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    script: list[object] = field(default_factory=list)
    """What is answered first, in order; then completions."""
    warnings: list[str] = field(default_factory=list)
    models: object = (404, error("no such route"))
    hanging: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def answer(self, body: dict) -> object:
        return self.script.pop(0) if self.script else (200, completion())


class Reasoner(FakeEndpoint):
    """As models that reason: one name for the limit, one temperature."""

    def answer(self, body: dict) -> object:
        if "max_tokens" in body:
            return 400, error(REASONS["max_tokens"], param="max_tokens", code="unsupported_parameter")
        if body.get("temperature", 1) != 1:
            return 400, error(REASONS["temperature"], param="temperature", code="unsupported_value")
        return 200, completion()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        endpoint = self.server.endpoint
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        endpoint.bodies.append(body)
        endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
        answer = endpoint.answer(body)
        if answer == HANGS:
            endpoint.hanging.set()
            endpoint.released.wait(30)
            self.close_connection = True
            return
        self.reply(*answer)

    def do_GET(self) -> None:
        self.reply(*self.server.endpoint.models)

    def reply(self, status: int, body: object) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.send_header("retry-after-ms", "10")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture(params=[FakeEndpoint])
def endpoint(request, monkeypatch) -> Iterator[FakeEndpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.endpoint = request.param(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.endpoint
    server.endpoint.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def build(
    endpoint: FakeEndpoint,
    *,
    timeout: float = 20.0,
    spend: Callable[[Usage], None] = lambda usage: None,
    **settings: object,
) -> OpenAIBackend:
    """As a run builds it."""
    keys = {"name": "openai", "url": endpoint.url, "api_key_env": "OPENAI_API_KEY", **settings}
    section = InferenceSection.model_validate({"backend": keys})
    context = ChatContext("gpt-4o", timeout=timeout, warn=endpoint.warnings.append, spend=spend)
    return Plugins().build("backends", section.backend, context=context)


@asynccontextmanager
async def started(endpoint: FakeEndpoint, *, script: tuple[object, ...] = (), **settings: object):
    """The backend after its start; what it has asked for that is forgotten, and ``script`` comes next."""
    backend = build(endpoint, **settings)
    try:
        await backend.start()
        endpoint.bodies.clear()
        endpoint.script[:] = script
        yield backend
    finally:
        await backend.stop()


def ask(
    endpoint: FakeEndpoint, script: tuple[object, ...] = (), *, request: ChatRequest | None = None, **settings: object
):
    """One call through a backend that has started."""

    async def main():
        async with asyncio.timeout(20), started(endpoint, script=script, **settings) as backend:
            return await backend.complete(request or ChatRequest({"messages": MESSAGES}))

    return asyncio.run(main())


def start(endpoint: FakeEndpoint, **settings: object):
    async def main():
        backend = build(endpoint, **settings)
        try:
            async with asyncio.timeout(20):
                return await backend.start()
        finally:
            await backend.stop()

    return asyncio.run(main())


def test_it_keeps_the_contract_of_a_chat_backend_and_the_torch_engine_the_other():
    assert issubclass(OpenAIBackend, ChatBackend)
    assert not issubclass(TorchBackend, ChatBackend)
    assert not isinstance(Backend, ChatBackend)


def test_a_call_goes_through_as_it_was_written_for_the_endpoint_s_model(endpoint):
    body = {
        "model": "policy",
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}],
        "tools": [{"type": "function", "function": {"name": "f", "strict": True}}],
        "tool_choice": "required",
        "response_format": {"type": "json_object"},
        "temperature": 0.3,
        "max_completion_tokens": 50,
        "reasoning_effort": "low",
        "seed": 5,
    }
    answer = ask(endpoint, request=ChatRequest(body, temperature=0.9, max_tokens=128))
    assert endpoint.bodies == [body | {"model": "gpt-4o"}]
    assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
    assert answer.answer == completion()
    assert (answer.message["content"], answer.finish_reason) == ("It is 2.", "stop")
    assert (answer.prompt_tokens, answer.completion_tokens) == (9, 4)


@pytest.mark.parametrize(
    ("request_", "sent"),
    [
        (ChatRequest({"temperature": None}, 0.9, 128), {"temperature": 0.9, "max_tokens": 128}),
        (ChatRequest({}, 0.0), {"temperature": 0.0}),
        (ChatRequest({"max_tokens": 7}, 1.0, 128), {"temperature": 1.0, "max_tokens": 7}),
        (ChatRequest({"temperature": 0, "max_completion_tokens": 7}, 1.0, 128), {"temperature": 0}),
    ],
)
def test_what_a_call_does_not_set_is_the_run_s(request_, sent):
    body = request_body(request_, "gpt-4o", ModelSupport())
    assert {name: body[name] for name in ("temperature", "max_tokens") if name in body} == sent


def test_an_answer_without_usage_counts_no_tokens(endpoint):
    answer = ask(endpoint, ((200, completion(usage=None)),))
    assert (answer.prompt_tokens, answer.completion_tokens) == (0, 0)


def test_every_request_is_reported_with_its_tokens_or_as_unknown(endpoint):
    used = []

    async def main():
        backend = build(endpoint, spend=used.append)
        try:
            await backend.start()
            endpoint.script[:] = [(503, error("later")), (429, error("slowly"))]
            await backend.complete(ChatRequest({"messages": MESSAGES}))
            endpoint.script[:] = [(400, error("no"))]
            with pytest.raises(GatewayError):
                await backend.complete(ChatRequest({"messages": MESSAGES}))
        finally:
            await backend.stop()

    asyncio.run(main())
    assert [(each.requests, each.unknown, each.prompt_tokens, each.completion_tokens) for each in used] == [
        (1, 0, 9, 4),
        (3, 2, 9, 4),
        (1, 1, 0, 0),
    ]


def test_a_start_asks_one_short_question(endpoint):
    assert start(endpoint).greedy
    (body,) = endpoint.bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt-4o", 0, 16)


@pytest.mark.parametrize("endpoint", [Reasoner], indirect=True)
def test_what_a_model_does_not_take_is_found_out_at_the_start(endpoint):
    assert not start(endpoint).greedy
    ask(endpoint, request=ChatRequest({"messages": MESSAGES}, max_tokens=128))
    ask(endpoint, request=ChatRequest({"messages": MESSAGES, "max_tokens": 7}, max_tokens=128))
    assert endpoint.bodies[-1]["max_completion_tokens"] == 7


@pytest.mark.parametrize("endpoint", [Reasoner], indirect=True)
def test_a_field_that_the_endpoint_refuses_comes_back_in_its_words(endpoint):
    with pytest.raises(GatewayError) as caught:
        ask(endpoint, request=ChatRequest({"messages": MESSAGES, "temperature": 0.2}))
    refused = caught.value
    assert (refused.status, refused.param, refused.code) == (400, "temperature", "unsupported_value")
    assert str(refused) == f"{endpoint.url} answered 400: {REASONS['temperature']}"


@pytest.mark.parametrize(
    "body",
    [
        error("This model's maximum context length is 4096 tokens.", code="context_length_exceeded"),
        error("This model's maximum context length is 4096 tokens. However, you requested 5000."),
        error("the request exceeds the available context size, try increasing it"),
        error("The input (5000 tokens) is longer than the model's context length (4096 tokens)."),
    ],
)
def test_a_prompt_that_is_too_long_is_told_alike_by_every_server(endpoint, body):
    with pytest.raises(GatewayError, match="context") as caught:
        ask(endpoint, ((400, body),))
    assert (caught.value.status, caught.value.code) == (400, CONTEXT_EXCEEDED)


def test_a_key_that_is_refused_is_named_by_its_variable(endpoint, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", KEY)
    endpoint.script.append((401, error(f"Incorrect API key provided: {KEY}", code="invalid_api_key")))
    with pytest.raises(ConfigError, match=r"refuses the key in OTHER_KEY.*set OTHER_KEY") as caught:
        start(endpoint, api_key_env="OTHER_KEY")
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_a_key_that_is_refused_later_is_the_endpoint_s_401(endpoint):
    with pytest.raises(GatewayError, match="refuses the key in OPENAI_API_KEY") as caught:
        ask(endpoint, ((401, error("expired")),))
    assert caught.value.status == 401


def test_a_key_that_is_not_set_is_told_before_anything_is_asked(endpoint, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match=r"OPENAI_API_KEY.*is not set.*api_key_env=null"):
        build(endpoint)
    assert start(endpoint, api_key_env=None).greedy
    assert endpoint.headers[0]["authorization"] == "Bearer none"


@pytest.mark.parametrize(
    ("status", "fix"), [(402, "see what the account of the key in OPENAI_API_KEY has left"), (403, "may use model")]
)
def test_an_account_that_may_not_ask_is_told_so_with_who_says_it(endpoint, status, fix):
    endpoint.script.append((status, error("no more of it")))
    with pytest.raises(ConfigError, match=rf"127.0.0.1:\d+/v1 answered {status}: no more of it \(.*{fix}"):
        start(endpoint)


def test_a_refusal_later_on_says_who_refused(endpoint):
    with pytest.raises(GatewayError, match=r"127.0.0.1:\d+/v1 answered 402: no credits \(see what") as caught:
        ask(endpoint, ((402, error("no credits")),))
    assert caught.value.status == 402


GEMINI = [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.", "status": "INVALID"}}]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"object": "error", "message": "Invalid model: gpt-4o", "type": "invalid_model"}, "does not take model"),
        (error("gpt-4o is not a valid model ID"), "does not take model"),
        (error("Model Not Exist"), "does not take model"),
        (error("The model 'gpt-4o' does not exist"), "does not take model"),
        (GEMINI, r"refuses the key in OPENAI_API_KEY: API key not valid.*\(set OPENAI_API_KEY"),
        (error("Incorrect API key provided"), "refuses the key in OPENAI_API_KEY"),
    ],
)
def test_a_model_or_a_key_that_is_refused_with_a_plain_400_is_told_at_the_start(endpoint, body, told):
    endpoint.script.append((400, body))
    with pytest.raises(ConfigError, match=told):
        start(endpoint)
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize("refusal", [(404, error("no")), (400, error("no", code="model_not_found"))])
def test_a_model_that_the_endpoint_does_not_have_is_told_with_those_that_it_has(endpoint, refusal):
    endpoint.models = (200, {"data": [{"id": "gpt-4o-mini"}, {"id": "whisper"}, {"name": "odd"}]})
    endpoint.script.append(refusal)
    with pytest.raises(ConfigError, match=r"does not take model 'gpt-4o': no \(did you mean 'gpt-4o-mini'\?\)"):
        start(endpoint)


@pytest.mark.parametrize("models", [(404, {"detail": "Not Found"}), (200, {"data": [{"name": "odd"}]}), (200, b"<p>")])
def test_an_endpoint_without_a_list_of_models_may_be_the_wrong_url(endpoint, models):
    endpoint.models = models
    endpoint.script.append((404, {"detail": "Not Found"}))
    with pytest.raises(ConfigError, match=r"'gpt-4o': Not Found \(check inference.backend.url, which often ends in"):
        start(endpoint)


@pytest.mark.parametrize("text", ["I only answer with audio", "max_tokens is too few for this model; temperature too"])
def test_a_question_that_is_refused_for_other_reasons_is_no_hindrance_and_told(endpoint, text):
    endpoint.script.append((400, error(text)))
    assert start(endpoint).greedy
    assert endpoint.warnings == [f"the endpoint refused a short question: {endpoint.url} answered 400: {text}"]


def test_a_refusal_that_repeats_the_request_does_not_say_what_the_model_takes(endpoint):
    request = {"model": "gpt-4o", "max_tokens": 16, "temperature": 0.0}
    missing = {"type": "missing", "loc": ["body", "user"], "msg": "Field required", "input": request}
    endpoint.script += [(422, {"detail": [missing]}), (200, completion())]
    assert start(endpoint).greedy
    assert endpoint.warnings == [
        f"the endpoint refused a short question: {endpoint.url} answered 422: body.user: Field required"
    ]
    endpoint.script.append((400, error(f"Bad request: {request}")))
    assert start(endpoint).greedy
    assert len(endpoint.bodies) == 2


def test_a_field_that_a_server_s_own_checks_name_is_left_out(endpoint):
    extra = {"type": "extra_forbidden", "loc": ["body", "max_tokens"], "msg": "not permitted", "input": {"a": 1}}
    endpoint.script.append((422, {"detail": [extra]}))
    assert start(endpoint).greedy
    assert "max_completion_tokens" in endpoint.bodies[-1]
    assert endpoint.warnings == []


def test_an_endpoint_that_is_not_there_is_told_soon(endpoint):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with pytest.raises(BackendError, match=r"127.0.0.1:\d+/v1 cannot be reached.*inference.backend.url"):
        start(endpoint)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_may_go_better_is_tried_again(endpoint, status):
    answer = ask(endpoint, ((status, error("later")), (status, b"<html>")))
    assert answer.message["content"] == "It is 2."
    assert len(endpoint.bodies) == 3


def test_an_endpoint_that_accepts_and_never_answers_is_named_at_the_start(endpoint, monkeypatch):
    monkeypatch.setattr(backend_module, "_START_S", 0.5)
    endpoint.script.append(HANGS)
    with pytest.raises(BackendError, match=r"127.0.0.1:\d+/v1 did not answer within 0.5 s.*inference.backend.url"):
        start(endpoint)


def test_what_the_environment_holds_for_openai_goes_to_no_other_endpoint(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-mine")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer mine\nX-Mine: mine")
    start(endpoint)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    section = InferenceSection.model_validate({"backend": {"name": "openai", "url": endpoint.url}})
    other = Plugins().build("backends", section.backend, context=ChatContext("gpt-4o", timeout=20))
    asyncio.run(_start(other))
    assert [headers["authorization"] for headers in endpoint.headers] == [f"Bearer {KEY}", "Bearer none"]
    assert not [headers for headers in endpoint.headers if "mine" in str(headers)]


async def _start(backend: OpenAIBackend) -> None:
    try:
        await backend.start()
    finally:
        await backend.stop()


def test_openai_s_own_endpoint_gets_its_key_and_what_else_the_environment_holds_for_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    own = Endpoint.of(OpenAISettings(), "gpt-4o", os.environ)
    assert (own.variable, own.key, own.is_openai) == ("OPENAI_API_KEY", KEY, True)
    assert Endpoint.of(OpenAISettings(api_key_env=None), "gpt-4o", os.environ).variable is None
    assert Endpoint.of(OpenAISettings(url="https://evil.example/api.openai.com"), "m", os.environ).variable is None

    async def client():
        async with make_client(own, 5) as client:
            return dict(client.default_headers), client._client.event_hooks["request"]

    headers, hooks = asyncio.run(client())
    assert (headers["Authorization"], headers["OpenAI-Organization"]) == (f"Bearer {KEY}", "org-mine")
    assert [hook.__name__ for hook in hooks] == ["count"]  # None takes headers away.


@pytest.mark.parametrize(("status", "fix"), [(429, "rollout.concurrency"), (500, "max_retries")])
def test_what_stays_broken_is_the_backend_s_failure(endpoint, status, fix):
    with pytest.raises(BackendError, match=f"answered {status}: out of order.*{fix}"):
        ask(endpoint, ((status, error("out of order")),) * 3, max_retries=2)
    assert len(endpoint.bodies) == 3


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"<html>", "did not answer in JSON: '<html>'"),
        ([], "without a choice"),
        ({"error": {"message": "no credits"}}, "without a choice, or with several: 'no credits'"),
        (completion(choices=[{}, {}]), "without a choice, or with several"),
        (completion(choices=["text"]), "without a message"),
        (completion(choices=[{"message": None}]), "without a message"),
    ],
)
def test_an_answer_that_is_none_is_the_backend_s_failure(endpoint, body, told):
    with pytest.raises(BackendError, match=told):
        ask(endpoint, ((200, body),))


def test_an_endpoint_that_never_answers_is_left_at_the_deadline(endpoint):
    with pytest.raises(BackendError, match=r"did not answer within 0.5 s.*inference.timeout"):
        ask(endpoint, (HANGS,) * 9, timeout=0.5)


def test_retries_do_not_go_past_the_deadline(endpoint):
    with pytest.raises(BackendError, match=r"did not answer within 0\.5 s"):
        ask(endpoint, ((503, error("later")),) * 100_000, timeout=0.5, max_retries=100_000)


def test_a_caller_that_is_cancelled_gives_its_call_up_and_harms_no_other(endpoint):
    async def main():
        async with started(endpoint, script=(HANGS,)) as backend:
            hanging = asyncio.ensure_future(backend.complete(ChatRequest({"messages": MESSAGES})))
            async with asyncio.timeout(20):
                await asyncio.to_thread(endpoint.hanging.wait, 20)
                hanging.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await hanging
                return await backend.complete(ChatRequest({"messages": MESSAGES}))

    assert asyncio.run(main()).finish_reason == "stop"


def test_stopping_ends_what_is_in_flight_and_all_that_comes_later(endpoint):
    async def main():
        async with started(endpoint, script=(HANGS,)) as backend:
            hanging = asyncio.ensure_future(backend.complete(ChatRequest({"messages": MESSAGES})))
            async with asyncio.timeout(20):
                await asyncio.to_thread(endpoint.hanging.wait, 20)
                await backend.stop()
                await backend.stop()
                with pytest.raises(BackendError, match="has been closed"):
                    await hanging
                with pytest.raises(BackendError, match="is not running"):
                    await backend.complete(ChatRequest({"messages": MESSAGES}))

    asyncio.run(main())
    assert "agentrl-endpoint" not in {thread.name for thread in threading.enumerate()}


def test_calls_of_many_loops_share_one_backend(endpoint):
    async def one(backend):
        return (await backend.complete(ChatRequest({"messages": MESSAGES}))).finish_reason

    async def main():
        async with started(endpoint) as backend:
            mine = await asyncio.gather(*(one(backend) for _ in range(40)))
            others = await asyncio.gather(*(asyncio.to_thread(asyncio.run, one(backend)) for _ in range(4)))
            return [*mine, *others]

    assert asyncio.run(main()) == ["stop"] * 44


def test_the_key_is_in_no_log_and_in_no_repr(endpoint, caplog):
    caplog.set_level(logging.DEBUG)
    ask(endpoint, ((503, error("later")),))
    assert caplog.records
    assert KEY not in caplog.text
    backend = build(endpoint)
    assert KEY not in repr(vars(backend))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": "localhost:8000"}, r"inference.backend.url: should be a URL such as"),
        ({"url": "http://me:secret@host/v1"}, r"should hold no user, password or query"),
        ({"url": "http://host/v1/chat/completions"}, r"should end before /chat/completions"),
        ({"api_key_env": "sk-proj-secret"}, r"should be the name of an environment variable, not a key"),
        ({"api_key": "secret"}, r"there is no key 'inference.backend.api_key'.*api_key_env"),
        ({"max_retries": -1}, r"max_retries"),
    ],
)
def test_settings_that_cannot_be_are_told_without_their_secrets(endpoint, settings, told):
    with pytest.raises(ConfigError, match=told) as caught:
        build(endpoint, **settings)
    assert "secret" not in str(caught.value)
