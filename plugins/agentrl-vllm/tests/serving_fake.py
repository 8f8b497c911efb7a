"""A program that samples and takes weights as a vLLM server does: SERVING_FAKE PORT MODEL_FOLDER WAIT.

While the file WAIT is there it answers no request for tokens of more than a few; it then makes a file beside it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from fleet_of_fakes import TENSORS, FakeServer
from stub import Answer, Stub
from well import GENERATE

FEW = 8


def waits(wait: Path) -> bool:
    """Whether requests are not answered now; if so, it tells the test that there is one."""
    if not wait.exists():
        return False
    wait.with_name("waits").touch()
    return True


async def main(port: int, folder: str, wait: Path) -> None:
    version = Path(folder).name.removeprefix("v")
    number = int(version) if version.isdecimal() else 0
    server = FakeServer(folder, tensors=dict.fromkeys(TENSORS, number))
    name = sys.argv[sys.argv.index("--served-model-name") + 1]

    async def handle(path: str, body: Any) -> Answer:
        told: dict[str, Any] = {
            "/health": {},
            "/version": {"version": "0.32.0"},
            "/is_sleeping": {},
            "/v1/models": {"data": [{"id": name}]},
        }
        if path in told:
            return 200, told[path]
        if path == GENERATE and body["sampling_params"]["max_tokens"] > FEW and waits(wait):
            await asyncio.Event().wait()
        return 200, server.answer(path, body)

    listening = await asyncio.start_server(Stub(handle).connected, "127.0.0.1", port)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
