"""A gateway before a scripted backend, and the SDK's own clients, connected in every way there is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import httpx2
import openai
import pytest

from agentrl.clients import client_library
from agentrl.gateway import EngineCompleter, Gateway, Session, SessionSettings
from agentrl.inference.contract import Capabilities, Chunk, GenerationRequest
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer

CONTEXT = 1024
CLIENTS = {"connection", "http", "in_process"}
"""Fixtures that connect a client of the openai package."""
HELPERS = ("openai", "tests.gateway.protocols", "tests.gateway.family")
"""Modules that have clients of it, or are it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what asks through the openai package: what does not says nothing new beside another version of that."""
    for item in items:
        if Path(__file__).parent not in item.path.parents or not isinstance(item, pytest.Function):
            continue
        held = (
            getattr(each, "__module__", None) or getattr(each, "__name__", "") for each in vars(item.module).values()
        )
        if CLIENTS & set(item.fixturenames) or any(str(name).startswith(HELPERS) for name in held):
            item.add_marker(pytest.mark.openai_client)


@dataclass
class ScriptedBackend:
    """Answers with what the script says, in order: ids, an exception, or ``hang``."""

    renderer: Renderer
    script: list[object] = field(default_factory=list)
    requests: list[GenerationRequest] = field(default_factory=list)
    running: int = 0
    cancelled: int = 0
    version: int = 7

    def says(self, *texts: str) -> None:
        """Answer next with ``texts``, encoded as the tokenizer would and ended by the stop token."""
        self.script += [[*self.renderer.vocabulary.encode(text), self.end] for text in texts]

    def spells(self, text: str) -> list[int]:
        """Answer next with ``text`` in a split that encoding it would never give: one token a character."""
        vocabulary = self.renderer.vocabulary
        ids = [token for piece in re.findall(r"</?t[a-z_]+>|.", text, re.DOTALL) for token in vocabulary.encode(piece)]
        assert ids != vocabulary.encode(text)
        self.script.append([*ids, self.end])
        return [*ids, self.end]

    @property
    def end(self) -> int:
        """The id of <|im_end|>."""
        return self.renderer.vocabulary.convert_tokens_to_ids("<|im_end|>")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        step = self.script.pop(0)
        self.running += 1
        try:
            if step == "hang":
                await asyncio.sleep(3600)
            if isinstance(step, Exception):
                raise step
            chunk = step if isinstance(step, Chunk) else self.chunk(step)
            await asyncio.sleep(0)
            yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def chunk(self, ids: list[int], **changes: object) -> Chunk:
        """A whole completion."""
        logprobs = tuple(-0.01 * (n + 1) for n in range(len(ids)))
        fields = {"finish": "stop"} | changes
        return Chunk(tuple(ids), logprobs, (self.version,) * len(ids), **fields)


@pytest.fixture(scope="session")
def renderer(chat_tokenizer) -> Renderer:
    return load_renderer(chat_tokenizer)


@pytest.fixture(scope="module")
def served(renderer) -> Iterator[Gateway]:
    """One gateway for a module, served over HTTP as well."""
    capabilities = Capabilities(context_length=CONTEXT, max_concurrency=8)
    gateway = Gateway(EngineCompleter(ScriptedBackend(renderer), capabilities, renderer))
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def gateway(served) -> Gateway:
    return served


@pytest.fixture
def backend(served, renderer, monkeypatch) -> ScriptedBackend:
    """A fresh script behind the gateway."""
    backend = ScriptedBackend(renderer)
    monkeypatch.setattr(served.completer, "backend", backend)
    return backend


Open = Callable[..., Session]


@pytest.fixture
def open_session(gateway) -> Open:
    """Opens a session; a training one unless told otherwise."""

    def open_session(**settings: object) -> Session:
        return gateway.open_session(SessionSettings(**({"training": True} | settings)))

    return open_session


@dataclass
class Connection:
    """One way from an SDK client to the gateway."""

    gateway: Gateway
    library: object
    in_process: bool

    def client(self, session: Session, **options: object) -> openai.AsyncOpenAI:
        """An ``AsyncOpenAI`` as an agent would make it."""
        fields = {"base_url": session.base_url, "api_key": session.api_key, "http_client": self.http_client()}
        return openai.AsyncOpenAI(**(fields | options))

    def http_client(self) -> object:
        """In process the shared one, else one of the agent's own."""
        return self.gateway.http_client(self.library) if self.in_process else self.library.AsyncClient(verify=False)


@pytest.fixture(params=["in process, httpx2", "in process, httpx", "HTTP, httpx2", "HTTP, httpx"])
def connection(request, gateway) -> Connection:
    """Every way in which an agent may reach the gateway; all behave alike."""
    way, library = request.param.split(", ")
    return Connection(gateway, {"httpx": httpx, "httpx2": httpx2}[library], way != "HTTP")


@pytest.fixture
def http(gateway) -> Connection:
    """Over HTTP only, for what has no meaning in process; by the library that the installed SDK is built on."""
    return Connection(gateway, client_library(), in_process=False)


@pytest.fixture
def in_process(gateway) -> Connection:
    """In process only; by the library that the installed SDK is built on."""
    return Connection(gateway, client_library(), in_process=True)


@pytest.fixture
def answered(gateway, monkeypatch) -> list[object]:
    """Every request that reached the gateway, retries included."""
    seen: list[object] = []
    answer = gateway.answer

    async def recorded(exchange):
        seen.append(exchange)
        return await answer(exchange)

    monkeypatch.setattr(gateway, "answer", recorded)
    return seen
