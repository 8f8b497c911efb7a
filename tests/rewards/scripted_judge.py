"""A real HTTP endpoint in the place of a judging model: what it answers is a test's own function."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

USAGE = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}


@dataclass
class Reply:
    """An answer of the endpoint."""

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    """The whole body, where it is no chat completion."""
    after: float = 0.0
    """Seconds that it lets the judge's client wait."""
    usage: Any = field(default_factory=lambda: USAGE)


Answer = Callable[[dict[str, Any]], Reply]
"""From the body of a request to the answer."""


def scored(score: object, reason: object = "because") -> Reply:
    return Reply(json.dumps({"reason": reason, "score": score}))


def ranked(*ranking: list[int]) -> Reply:
    return Reply(json.dumps({"reason": "because", "ranking": ranking}))


def shown(body: dict[str, Any]) -> dict[str, Any]:
    """What the judge is shown: the task, and the answer or the answers by their numbers."""
    material: dict[str, Any] = json.loads(body["messages"][1]["content"])
    return material


class ScriptedJudge:
    """Serves while its ``with`` block lasts; ``answer`` may be replaced at any time."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most = 0
        """Most requests that were answered at the same time."""
        self._now = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = judge._replied(body, self.headers.get("Authorization"))
                message = {"choices": [{"message": {"role": "assistant", "content": reply.text}}], "usage": reply.usage}
                sent = (json.dumps(message) if reply.body is None else reply.body).encode()
                try:
                    self.send_response(reply.status)
                    for name, value in {**reply.headers, "Content-Length": str(len(sent))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(sent)
                except OSError:  # The client did not wait for it.
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def _replied(self, body: dict[str, Any], key: str | None) -> Reply:
        with self._lock:
            self.requests.append(body)
            self.keys.append(key)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            reply = self.answer(body)
            self._over.wait(reply.after)
        finally:
            with self._lock:
                self._now -= 1
        return reply

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()


class InTurn:
    """Gives answers one after the other, the last one again and again."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)
        self.times: list[float] = []

    def __call__(self, body: dict[str, Any]) -> Reply:
        self.times.append(time.monotonic())
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
