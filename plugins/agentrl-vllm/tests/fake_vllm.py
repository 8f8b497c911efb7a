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
    """Answers what ``options["answers"]`` says, ``[status, body]`` by path; ``/health`` is well by default."""

    answers: ClassVar[dict[str, Any]] = {}
    hang = ""

    def do_GET(self) -> None:
        if self.hang and Path(self.hang).exists():
            time.sleep(600)
        status, body = self.answers.get(self.path, [200, {}] if self.path == "/health" else [404, {}])
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

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
    if (once := options.get("taken_once")) and not Path(once).exists():
        Path(once).touch()
        print("OSError: [Errno 98] Address already in use", flush=True)
        os._exit(1)
    if "exit" in options:
        os._exit(options["exit"])
    if options.get("never"):
        time.sleep(600)
    Handler.answers, Handler.hang = options.get("answers", {}), options.get("hang", "")
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
