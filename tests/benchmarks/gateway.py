"""What recording costs: server CPU and wall milliseconds a call, memory a session, and the wait for a first token.

The gateway runs in a process of its own, before an engine that answers at once, so that its CPU is the server's alone;
the clients are bare sockets on kept connections. Every call is parsed, rendered, sampled, read back, recorded and
answered as in a run. *short* is a call of 3 messages and 16 sampled tokens, one client; *long* are sessions of 8 turns
that sample 256 tokens with log-probabilities each, their prompts growing to some 2,000 tokens, by 64 clients at once.
*first token* is the time to a stream's first event with the bundled model's own engine, beside that to the engine's
first token.

    python -m tests.benchmarks.gateway [--calls 400] [--clients 64] [--sessions 2000] [--rounds 5] [NAME ...]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.benchmarks.sides.served import Served

SYSTEM = {"role": "system", "content": "You are a careful assistant. Answer with a number and nothing else."}
ASK = {"role": "user", "content": "Ann has 12 apples and buys 34 more. How many apples does she have now?"}
MORE = {"role": "user", "content": "Check the sum once more, please, and say the number again."}
TURNS = 8


@dataclass(frozen=True)
class Spent:
    """Milliseconds a call."""

    cpu: float
    wall: float


class BareClient:
    """One kept connection, whose requests are written by hand so that the client costs next to nothing."""

    def __init__(self, base_url: str, key: str) -> None:
        parts = urlsplit(base_url)
        self._host, self._port = parts.hostname, parts.port
        self.enter(base_url, key)
        self.first = 0.0
        """When the first byte of the latest body came."""

    def enter(self, base_url: str, key: str) -> None:
        """Go on in another session, on the same connection."""
        parts = urlsplit(base_url)
        self._path = parts.path
        self._head = f"host: {parts.netloc}\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=2**24)

    async def ask(self, route: str, body: dict[str, Any]) -> bytes:
        """The body of the answer, or of a stream all its events."""
        raw = json.dumps(body).encode()
        head = f"POST {self._path}{route} HTTP/1.1\r\n{self._head}content-length: {len(raw)}\r\n\r\n"
        self._writer.write(head.encode() + raw)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer + await self._reader.read(1000)
        fields = answer.lower()
        if b"content-length: " in fields:
            content = await self._reader.readexactly(int(fields.partition(b"content-length: ")[2].split(b"\r\n")[0]))
            self.first = time.perf_counter()
            return content
        content, self.first = b"", 0.0
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            self.first = self.first or time.perf_counter()
            content += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)
        return content

    def close(self) -> None:
        self._writer.close()


def said(answer: bytes) -> dict[str, Any]:
    """The assistant message of an answer, whole or streamed."""
    if answer.startswith(b"{"):
        return {"role": "assistant", "content": json.loads(answer)["choices"][0]["message"]["content"]}
    events = [json.loads(line[6:]) for line in answer.split(b"\n\n") if line.startswith(b"data: {")]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    return {"role": "assistant", "content": "".join(delta.get("content") or "" for delta in deltas)}


async def converse(client: BareClient, turns: int, **fields: Any) -> None:
    """A session of so many turns, with a new question each."""
    messages = [SYSTEM, ASK]
    for turn in range(turns):
        answer = await client.ask("/chat/completions", {"model": "any", "messages": messages, **fields})
        messages = [*messages, said(answer), {**MORE, "content": f"{turn}: {MORE['content']}"}]


async def short_calls(served: Served, calls: int, **fields: Any) -> Spent:
    """Calls one after another on one kept connection, each in a session of its own."""
    sessions = served.sessions(calls)
    client = BareClient(*sessions[0])
    await client.open()
    body = {"model": "any", "max_tokens": 16, **fields}
    spent = await measured(served, calls, lambda: one_by_one(client, sessions, body))
    client.close()
    return spent


async def one_by_one(client: BareClient, sessions: list[tuple[str, str]], body: dict[str, Any]) -> None:
    for number, session in enumerate(sessions):
        client.enter(*session)
        ask = {**ASK, "content": f"{number // 8}: {ASK['content']}"}
        await client.ask("/chat/completions", {**body, "messages": [SYSTEM, ask, MORE]})


async def long_sessions(served: Served, clients: int, **fields: Any) -> Spent:
    """Sessions of 8 turns by clients that all ask at once."""
    opened = [BareClient(*each) for each in served.sessions(clients)]
    for client in opened:
        await client.open()
    fields = {"max_tokens": 256, "logprobs": True, **fields}

    async def all_at_once() -> None:
        await asyncio.gather(*(converse(client, TURNS, **fields) for client in opened))

    spent = await measured(served, clients * TURNS, all_at_once)
    for client in opened:
        client.close()
    return spent


async def measured(served: Served, calls: int, work: Callable[[], Awaitable[None]]) -> Spent:
    cpu, wall = served.cpu(), time.perf_counter()
    await work()
    spent = Spent(1000 * (served.cpu() - cpu) / calls, 1000 * (time.perf_counter() - wall) / calls)
    served.close_sessions()
    return spent


WAYS: dict[str, Callable[[Served, argparse.Namespace], Awaitable[Spent]]] = {
    "short": lambda served, options: short_calls(served, options.calls),
    "short, streamed": lambda served, options: short_calls(served, options.calls, stream=True),
    "long": lambda served, options: long_sessions(served, options.clients),
    "long, streamed": lambda served, options: long_sessions(served, options.clients, stream=True),
}


async def calls(served: Served, options: argparse.Namespace) -> None:
    for way in WAYS.values():
        await way(served, options)
    taken: dict[str, list[Spent]] = {name: [] for name in WAYS}
    for _ in range(options.rounds):
        for name, way in WAYS.items():
            taken[name].append(await way(served, options))
    print(f"{'milliseconds a call':24}{'server CPU':>12}{'best':>8}{'wall':>8}{'best':>8}{'x whole':>9}")
    for name, rounds in taken.items():
        cpu, wall = [each.cpu for each in rounds], [each.wall for each in rounds]
        whole = [each.cpu for each in taken[name.partition(",")[0]]]
        ratio = statistics.median(each / base for each, base in zip(cpu, whole, strict=True))
        print(
            f"{name:24}{statistics.median(cpu):12.3f}{min(cpu):8.3f}{statistics.median(wall):8.3f}{min(wall):8.3f}"
            f"{ratio:9.2f}"
        )


async def memory(served: Served, options: argparse.Namespace) -> None:
    """Memory of open sessions of 20 turns of 16 tokens."""
    before = served.memory()
    for _ in range(0, options.sessions, 50):
        clients = [BareClient(*each) for each in served.sessions(50)]
        for client in clients:
            await client.open()
        await asyncio.gather(*(converse(client, 20, max_tokens=16) for client in clients))
        for client in clients:
            client.close()
    count = -(-options.sessions // 50) * 50
    grown = served.memory() - before
    print(f"\n{count:,} open sessions of 20 turns: {grown / 2**20:,.0f} MiB, {grown / count / 2**10:.1f} KiB a session")
    served.close_sessions()


async def first_token(options: argparse.Namespace) -> None:
    """Time to a stream's first event over HTTP, beside the engine's own first token, in turns on an idle engine."""
    import agentrl_agents
    from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
    from agentrl.inference.contract import BackendContext, GenerationRequest, Sampling
    from agentrl.inference.engine.backend import TorchBackend
    from agentrl.tokens.selection import load_renderer

    folder = Path(agentrl_agents.__file__).parent / "tiny"
    renderer = load_renderer(folder)
    backend = TorchBackend(BackendContext(folder))
    gateway = Gateway(EngineCompleter(backend, await backend.start(), renderer))
    gateway.start()
    own: list[float] = []
    events: list[float] = []
    for number in range(20 * options.rounds):
        messages = [SYSTEM, {**ASK, "content": f"{number}: {ASK['content']}"}]
        client = BareClient(*_credentials(gateway.open_session(SessionSettings(training=True))))
        await client.open()
        prompt = renderer.render([SYSTEM, {**ASK, "content": f"{number}, {ASK['content']}"}])
        begun = time.perf_counter()
        stream = backend.generate(GenerationRequest(prompt, Sampling(max_tokens=8), stream=True))
        await anext(stream)
        own.append(time.perf_counter() - begun)
        await stream.aclose()
        begun = time.perf_counter()
        body = {"model": "any", "messages": messages, "stream": True, "max_tokens": 8}
        await client.ask("/chat/completions", body)
        events.append(client.first - begun)
        client.close()
    gateway.stop()
    await backend.stop()
    engine, first = 1000 * statistics.median(own), 1000 * statistics.median(events)
    print(f"\nfirst token: engine {engine:.2f} ms, first event over HTTP {first:.2f} ms, {first - engine:+.2f} ms")


def _credentials(session: Any) -> tuple[str, str]:
    return session.base_url, session.api_key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of calls, memory, first_token; by default all")
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    names = options.names or ["calls", "memory", "first_token"]
    with Served() as served:
        if "calls" in names:
            asyncio.run(calls(served, options))
        if "memory" in names:
            asyncio.run(memory(served, options))
    if "first_token" in names:
        asyncio.run(first_token(options))


if __name__ == "__main__":
    main()
