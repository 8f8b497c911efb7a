"""The least that sends requests to a server: what a path through agents and gateway is held against."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from agentrl.inference.contract import Capabilities
from agentrl_vllm.generation import PATH, request_body, sampling_params
from benchmarks.episodes import AgentTurn

__all__ = ["Straight", "payloads"]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


def payloads(sessions: Sequence[Sequence[AgentTurn]], capabilities: Capabilities) -> list[list[bytes]]:
    """The bodies that the plugin posted for the turns of each session."""
    return [[_payload(turn, capabilities) for turn in turns] for turns in sessions]


def _payload(turn: AgentTurn, capabilities: Capabilities) -> bytes:
    request = turn.request
    room = capabilities.context_length - len(request.prompt_ids)
    body = request_body(request, sampling_params(request.sampling, room, capabilities.sampling))
    return json.dumps(body, separators=(",", ":")).encode()


class Straight:
    """HTTP/1.1 on sockets that it keeps, one for each request under way."""

    def __init__(self, url: str) -> None:
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._head = f"POST {PATH} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n".encode()

    async def run(self, sessions: Sequence[Sequence[bytes]], concurrency: int) -> int:
        """Send the requests of each session one after another, those of ``concurrency`` sessions at once.

        Returns how many tokens were sampled.
        """
        slots = asyncio.Semaphore(concurrency)

        async def session(bodies: Sequence[bytes]) -> int:
            async with slots:
                return sum([len(json.loads(await self._post(body))["choices"][0]["token_ids"]) for body in bodies])

        return sum(await asyncio.gather(*map(session, sessions)))

    def close(self) -> None:
        """Close the sockets."""
        for _, writer in self._idle:
            writer.close()

    async def _post(self, body: bytes) -> bytes:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        writer.write(self._head + b"content-length: %d\r\n\r\n" % len(body) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None:
            raise RuntimeError(f"the server answered {head.decode()!r}")
        answer = await reader.readexactly(int(length[1]))
        self._idle.append((reader, writer))
        return answer
