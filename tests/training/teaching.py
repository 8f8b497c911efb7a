"""A server that scores given ids as vLLM's completions do, and misbehaves as a test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from agentrl.config.training import TrainingSection
from agentrl.learner.contract import Targets
from agentrl.learner.frozen import FrozenModel

Misbehaviour = Callable[[list[int], int], Any]
"""From the ids of a request, and how many came before it with the same, to an answer other than the right one:
``(status, body)``, seconds to wait, or ``None`` for the right one."""


class Teacher:
    """What a server knows and has been asked."""

    def __init__(self, folder, misbehave: Misbehaviour = lambda ids, before: None) -> None:
        self.model = FrozenModel(folder, TrainingSection(device="cpu"))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.misbehave = misbehave
        self.asked: list[list[int]] = []
        self.keys: set[str | None] = set()
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    def logprobs(self, ids: list[int]) -> list[float]:
        path = np.array(ids)
        count = len(ids) - 1
        targets = Targets(np.zeros(count, dtype=np.int64), np.arange(count), path[1:], np.ones(count))
        return self.model.score(targets, [path]).logprob.tolist()

    def answer(self, request: dict[str, Any], key: str | None) -> tuple[int, Any]:
        ids = request["prompt"]
        with self._lock:
            before = self.asked.count(ids)
            self.asked.append(ids)
            self.keys.add(key)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            told = self.misbehave(ids, before)
            if isinstance(told, tuple):
                return told
            if told is not None:
                time.sleep(told)
            with self._lock:
                values = self.logprobs(ids)
            entries = [
                {str(token): {"logprob": value, "rank": 1, "decoded_token": self.tokenizer.decode([token])}}
                for token, value in zip(ids[1:], values, strict=True)
            ]
            usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
            return 200, {"choices": [{"text": "x", "prompt_logprobs": [None, *entries]}], "usage": usage}
        finally:
            with self._lock:
                self._now -= 1


@contextmanager
def serving(teacher: Teacher) -> Iterator[str]:
    """Serve it, and yield the base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert self.path == "/v1/completions"
            assert (request["max_tokens"], request["prompt_logprobs"], request["model"]) == (1, 0, "big")
            status, body = teacher.answer(request, self.headers.get("authorization"))
            text = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            if status == 429:
                self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # Whoever asked has given up.
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
