"""Agents of a few turns that return how long each call took, in seconds by response id, as rewards of their calls."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit

from openai import AsyncOpenAI

SYSTEM = {"role": "system", "content": "You are a careful assistant. Answer with a number and nothing else."}
ASK = {"role": "user", "content": "Ann has 12 apples and buys 34 more. How many apples does she have now?"}
MORE = {"role": "user", "content": "Check the sum once more, please, and say the number again."}


async def sdk(data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> dict[str, float]:
    """Through the plain OpenAI SDK, with the client that every agent is passed."""
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages: list[Any] = [SYSTEM, {**ASK, "content": f"{data['number']}: {ASK['content']}"}]
    taken = {}
    for _ in range(data["turns"]):
        began = time.perf_counter()
        answer = await client.chat.completions.create(model="any", messages=messages, max_tokens=16)
        taken[answer.id] = time.perf_counter() - began
        messages = [*messages, {"role": "assistant", "content": answer.choices[0].message.content}, MORE]
        await asyncio.sleep(data["think"])
    return taken


async def raw(data: dict[str, Any], *, base_url: str, api_key: str) -> dict[str, float]:
    """Over a bare socket, so that the agent costs next to nothing."""
    parts = urlsplit(base_url)
    head = (
        f"POST {parts.path}/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {api_key}\r\n"
        "content-type: application/json\r\ncontent-length: "
    ).encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    messages: list[Any] = [SYSTEM, {**ASK, "content": f"{data['number']}: {ASK['content']}"}]
    taken = {}
    for _ in range(data["turns"]):
        body = json.dumps({"model": "any", "messages": messages, "max_tokens": 16}).encode()
        began = time.perf_counter()
        writer.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))
        told = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(told.partition(b"content-length: ")[2].split(b"\r\n")[0])
        answer = json.loads(await reader.readexactly(size))
        taken[answer["id"]] = time.perf_counter() - began
        said = answer["choices"][0]["message"]["content"]
        messages = [*messages, {"role": "assistant", "content": said}, MORE]
        await asyncio.sleep(data["think"])
    writer.close()
    return taken
