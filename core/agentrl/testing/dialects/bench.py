"""The bench of a dialect's suite: the dialect, requests as the gateway would hand them to it, and a gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from agentrl.errors import GatewayError
from agentrl.gateway import EngineCompleter, Gateway, Session, SessionSettings
from agentrl.gateway.contract import Call, Completion, Dialect, ModelRequest, Reply, Route, Tokens, WireRequest
from agentrl.plugins import Plugins
from agentrl.testing.parts import MISSING, failing_tests, required
from agentrl.testing.scripted import ScriptedBackend
from agentrl.training.parts import ANY_ENGINE

__all__ = ["SAID", "Bench", "DialectSuite", "Parsed", "completion_of", "whole"]

SAID = "It is 408."
"""What the policy writes in a test that is about something else."""
_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Parsed:
    """A request as the dialect has read it."""

    request: WireRequest
    asked: Sequence[ModelRequest]


class Bench:
    """A dialect, and what is around it in a run."""

    def __init__(self, suite: type[DialectSuite], dialect: Dialect) -> None:
        self.dialect = dialect
        self.suite = suite

    @property
    def route(self) -> Route:
        """The route that completions are asked for at."""
        for route in self.dialect.routes:
            if "POST" in route.methods and self.suite.path in (None, route.path):
                return route
        pytest.fail(f"it has no route {self.suite.path or 'that takes POST'}", pytrace=False)

    def request(self, body: Mapping[str, Any], *, training: bool = False) -> WireRequest:
        """``body`` as the gateway hands it over."""
        settings = SessionSettings(training=training)
        return WireRequest("POST", self.route, {}, {}, body, settings, context_length=4096, memory={})

    def parsed(self, body: Mapping[str, Any]) -> Parsed:
        """``body`` as the dialect reads it. Fails the test where that asks nothing of the model."""
        request = self.request(body)
        asked = self.dialect.parse(request)
        if isinstance(asked, Reply):
            pytest.fail(f"{shown(body)} is answered without asking the model", pytrace=False)
        return Parsed(request, [asked] if isinstance(asked, ModelRequest) else asked)

    def refusal(self, body: Mapping[str, Any]) -> GatewayError | None:
        """The error with which ``body`` is refused, if it is. Fails the test for an error of another type."""
        try:
            self.dialect.parse(self.request(body))
        except GatewayError as error:
            return error
        except Exception as error:
            pytest.fail(
                f"{shown(body)} raises {type(error).__name__}: {error}\na client would be told 500, and ask again; "
                "raise GatewayError, which names what is wrong",
                pytrace=False,
            )
        return None

    @contextmanager
    def session(self, *said: str, training: bool = True) -> Iterator[tuple[Session, Asking]]:
        """A session of a gateway that serves the dialect, whose policy writes ``said``, and what asks it."""
        backend = ScriptedBackend(said or (SAID,))
        gateway = Gateway(EngineCompleter(backend, ANY_ENGINE_HERE, backend.renderer), [self.dialect])
        session = gateway.open_session(SessionSettings(training=training))
        try:
            yield session, Asking(gateway, session, self.route)
        finally:
            gateway.stop()


ANY_ENGINE_HERE = type(ANY_ENGINE)(4096, 64, sampling=ANY_ENGINE.sampling)


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks a session through the in-process client, as an agent does."""

    gateway: Gateway
    session: Session
    route: Route

    def __call__(self, body: Mapping[str, Any]) -> Any:
        """The whole response to ``body``."""

        async def ask() -> Any:
            url = f"{self.session.base_url}{self.route.path}"
            async with asyncio.timeout(_DEADLINE_S):
                return await self.gateway.http_client().post(url, content=json.dumps(body).encode())

        try:
            return asyncio.run(ask())
        except TimeoutError:
            pytest.fail(f"{shown(body)} is not answered within {_DEADLINE_S:g} s", pytrace=False)


def whole(reply: Reply) -> bytes:
    """The whole body of a reply."""

    async def read() -> bytes:
        body = reply.body
        assert not isinstance(body, bytes)
        if hasattr(body, "__aiter__"):
            return b"".join([part async for part in body])
        return b"".join(body)

    return reply.body if isinstance(reply.body, bytes) else asyncio.run(read())


def completion_of(
    asked: ModelRequest, message: Mapping[str, Any], finish_reason: str = "stop", *, choice: int = 0
) -> Completion:
    """A completion of ``asked`` whose message is ``message``."""
    calls = message.get("tool_calls")
    call = Call(
        id=asked.call_id,
        parent=None,
        request=asked.body,
        message={"role": "assistant", **message},
        finish_reason="tool_calls" if calls and finish_reason == "stop" else finish_reason,
        prompt_tokens=7,
        completion_tokens=5,
    )
    handle = f"handle-{asked.call_id}" if message.get("reasoning_content") else ""
    tokens = tokens_of(str(message.get("content") or "")) if asked.logprobs else Tokens()
    return Completion(call, "policy", tokens=tokens, handle=handle, choice=choice)


def tokens_of(text: str) -> Tokens:
    """``text`` as tokens of one character each."""
    ids = tuple(map(ord, text))
    return Tokens(ids, (-0.5,) * len(ids), (((65, -0.5), (66, -1.5)),) * len(ids), piece=_piece)


def _piece(token: int, before: int | None) -> bytes:
    return chr(token).encode("utf-8", "replace")


def shown(body: Mapping[str, Any]) -> str:
    """A body in a message."""
    text = json.dumps(body, ensure_ascii=True)
    return text if len(text) <= 200 else f"{text[:199]}…"


class DialectSuite:
    """What a suite is told of its dialect, and the bench."""

    dialect: ClassVar[Any] = MISSING
    """Its name, ``pkg.mod:Obj`` or ``file.py:Obj``; or the class or the object itself."""
    asks: ClassVar[Sequence[Mapping[str, Any]]] = MISSING
    """Bodies of requests for completions. The first asks for a plain text; others may ask for tools, log-probabilities,
    several choices and whatever else there is."""
    path: ClassVar[str | None] = None
    """The path of the route that they are sent to; by default the first that takes POST."""
    streams: ClassVar[bool] = False
    """Whether answers are streamed where they are asked for so; then ``read`` has to be written too."""
    overrides: ClassVar[Mapping[str, Any]] = {"temperature": 0.5}
    """Fields of ``rollout.override`` that the protocol has; empty where it has none."""
    strict: ClassVar[bool] = True
    """Whether fields that it does not know are refused."""

    @classmethod
    def as_stream(cls, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The request of ``body`` for a streamed answer."""
        return {**body, "stream": True}

    @classmethod
    def read(cls, body: bytes, *, streamed: bool) -> Any:
        """What a client makes of the body of an answer, to compare a streamed answer with a whole one.

        Leave out what may differ, such as the time of the answer.
        """
        pytest.fail(f"{cls.__name__} streams, and does not say how its answers are read: write `read`", pytrace=False)

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls) -> Bench:
        """The dialect as a run would load it."""
        given = required(cls, "dialect")
        required(cls, "asks")
        with failing_tests():
            loaded = Plugins().get("dialects", given) if isinstance(given, str) else given
        return Bench(cls, loaded() if isinstance(loaded, type) else loaded)
