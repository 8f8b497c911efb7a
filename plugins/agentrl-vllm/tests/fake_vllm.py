"""A program that behaves as a vLLM server does, as far as starting, watching and attaching go: FAKE_VLLM PORT JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, ClassVar

GRANDCHILD = "import time; time.sleep(600)"


class Handler(BaseHTTPRequestHandler):
    """Answers what ``options["answers"]`` says, ``[status, body]`` by path; by default as one that is well does.

    Where the file ``options["hang"]`` is there it answers nothing, and where ``options["stuck"]`` is, only what vLLM
    answers without its engine.
    """

    answers: ClassVar[dict[str, Any]] = {}
    hang = stuck = ""

    def do_GET(self) -> None:
        is_engine = self.path not in ("/health", "/v1/models", "/version")
        for file in (self.hang, self.stuck if is_engine else ""):
            if file and Path(file).exists():
                time.sleep(600)
        status, body = {**self.well(), **self.answers}.get(self.path, [404, {}])
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def well(self) -> dict[str, Any]:
        name = sys.argv[sys.argv.index("--served-model-name") + 1]
        return {
            "/health": [200, {}],
            "/is_sleeping": [200, {"is_sleeping": False}],
            "/v1/models": [200, {"data": [{"id": name}]}],
        }

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, *args: object) -> None:
        """Silent."""


def main(port: int, options: dict[str, Any]) -> None:
    for line in options.get("lines", []):
        print(line, flush=True)
    if options.get("family"):
        memory = shared_memory.SharedMemory(create=True, size=64)
        print(f"shared memory {memory.name}", flush=True)
        subprocess.Popen([sys.executable, "-c", GRANDCHILD])
        subprocess.Popen([sys.executable, "-c", GRANDCHILD], start_new_session=True)
    if "exit" in options:
        os._exit(options["exit"])
    if options.get("never"):
        time.sleep(600)
    Handler.answers = options.get("answers", {})
    Handler.hang, Handler.stuck = options.get("hang", ""), options.get("stuck", "")
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
