"""The HTTP client that a worker's agents share, and what its requests leave in the log."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agentrl.gateway.session import new_credentials

COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 0,
    "model": "policy",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "42"}}],
}
ASK = "client.chat.completions.create(model=model, messages=[{'role': 'user', 'content': 'q'}])"


class Answers(BaseHTTPRequestHandler):
    """Answers every call, and counts how many wait at once."""

    waiting = 0
    together = threading.Condition()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        wanted = int(body.get("n") or 1)
        with self.together:
            type(self).waiting += 1
            self.together.notify_all()
            assert self.together.wait_for(lambda: type(self).waiting >= wanted, timeout=60)
        content = json.dumps(COMPLETION | {"id": self.headers["authorization"]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    request_queue_size = 512


@pytest.fixture
def url() -> Iterator[str]:
    """An endpoint that answers, with a capture token in its path."""
    Answers.waiting = 0
    with Server(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{new_credentials().capture}/v1"
        server.shutdown()
        thread.join()


def test_an_async_agent_that_closes_the_shared_client_harms_nobody(loaded, url):
    rollout = loaded(f"""
        from openai import AsyncOpenAI
        clients = set()
        async def agent(data, *, base_url, api_key, http_client, model):
            clients.add(http_client)
            async with AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client) as client:
                reply = await {ASK}
            await http_client.aclose()
            return [reply.id, reply.choices[0].message.content, len(clients)]
    """)
    for number in (1, 2):
        assert rollout.run(episode=number, base_url=url) == [f"Bearer key-{number}", "42", 1]


def test_a_synchronous_agent_gets_a_synchronous_client(loaded, url):
    rollout = loaded(f"""
        from openai import OpenAI
        clients = set()
        def agent(data, *, base_url, api_key, http_client, model):
            clients.add(http_client)
            with OpenAI(base_url=base_url, api_key=api_key, http_client=http_client) as client:
                reply = {ASK}
            http_client.close()
            return [reply.id, reply.choices[0].message.content, len(clients)]
    """)
    for number in (1, 2):
        assert rollout.run(episode=number, base_url=url) == [f"Bearer key-{number}", "42", 1]


def test_any_number_of_calls_may_be_under_way(loaded, url):
    """The SDK's own client stops at 1,000, httpx's at 100: here the endpoint answers none before all have come."""
    rollout = loaded(f"""
        import asyncio
        from openai import AsyncOpenAI
        async def agent(data, *, base_url, api_key, http_client, model):
            client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client, max_retries=0)
            return len(await asyncio.gather(*({ASK[:-1]}, n=150) for _ in range(150))))
    """)
    assert rollout.run(base_url=url) == 150


def test_an_agent_that_passes_nothing_on_reaches_its_episode(loaded, url):
    rollout = loaded(f"""
        from openai import OpenAI
        def agent(data, model):
            client = OpenAI()
            return ({ASK}).id
    """)
    assert rollout.run(base_url=url, episode=3) == "Bearer key-3"


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_secrets_stay_out_of_the_log_however_the_agent_logs(loaded, url, level):
    key = new_credentials().key
    rollout = loaded(f"""
        import logging
        logging.basicConfig(level="{level}")
        log = logging.getLogger("mine")
        from openai import AsyncOpenAI
        async def agent(data, *, base_url, http_client, model):
            client = AsyncOpenAI(base_url=base_url, api_key={key!r}, http_client=http_client)
            await {ASK}
            log.info("asked %s with %s", base_url, {key!r})
            try:
                (await http_client.get(base_url)).raise_for_status()
            except Exception:
                log.exception("not there")
            log.warning("%d is no number", "x")
            raise LookupError(base_url)
    """)
    rollout.begin(1, base_url=url)
    answer = rollout.hear()
    token = url.split("/")[-2]
    public = token[: len("capture-") + 12]
    said = rollout.log() + json.dumps(answer, ensure_ascii=False)
    assert token[-43:] not in said
    assert key[-43:] not in said
    assert f"HTTP Request: POST http://127.0.0.1:{url.split(':')[2].split('/')[0]}/{public}-…/v1" in said
    assert f"asked http://127.0.0.1:{url.split(':')[2].split('/')[0]}/{public}-…/v1 with sk-agentrl-" in said
    assert "Server error '501" in said
    assert "LookupError" in said
