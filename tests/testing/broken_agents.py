"""Agents that break one promise each."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from openai import AsyncOpenAI, OpenAI, OpenAIError

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {"type": "object", "properties": {"left": {"type": "integer"}}, "required": ["left"]},
        },
    }
]


def opening(data: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": data["question"]}]


async def asked(client: AsyncOpenAI, messages: list[Any], **fields: Any) -> Any:
    reply = await client.chat.completions.create(model="policy", messages=messages, **fields)
    return reply.choices[0].message


def client_of(base_url: str, api_key: str, http_client: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)


async def sound(data, *, base_url, api_key, http_client):
    await asked(client_of(base_url, api_key, http_client), opening(data))
    return 1.0


async def two_turns(data, *, base_url, api_key, http_client):
    client, messages = client_of(base_url, api_key, http_client), opening(data)
    for _ in range(2):
        message = await asked(client, messages)
        messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": "Again."}]
    return 1.0


async def idle(data, *, base_url, api_key, http_client):
    return 1.0


async def trusting(data, *, base_url, api_key, http_client):
    """Believes that tool calls are well-formed."""
    message = await asked(client_of(base_url, api_key, http_client), opening(data), tools=TOOLS)
    for call in message.tool_calls or ():
        json.loads(call.function.arguments)["left"]
    return 1.0


async def endless(data, *, base_url, api_key, http_client):
    client, messages = client_of(base_url, api_key, http_client), opening(data)
    while (message := await asked(client, messages, tools=TOOLS)).tool_calls:
        messages.append(message.model_dump(exclude_none=True))
        messages += [{"role": "tool", "tool_call_id": call.id, "content": "?"} for call in message.tool_calls]
    return 1.0


async def waiting(data, *, base_url, api_key, http_client):
    """Waits for what an empty answer never brings."""
    message = await asked(client_of(base_url, api_key, http_client), opening(data))
    while not message.content.strip():
        time.sleep(0.05)  # noqa: ASYNC251
    return 1.0


class Remembering:
    """Keeps its conversation from one episode to the next."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def run(self, data, *, base_url, api_key, http_client):
        self.messages += opening(data)
        message = await asked(client_of(base_url, api_key, http_client), self.messages)
        self.messages.append({"role": "assistant", "content": message.content})
        return 1.0


class Mixing:
    """Keeps its client where another episode finds it."""

    async def run(self, data, *, base_url, api_key, http_client):
        self.client, messages = client_of(base_url, api_key, http_client), opening(data)
        for _ in range(2):
            message = await asked(self.client, messages)
            messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": "Again."}]
        return 1.0


async def blocking(data, *, base_url, api_key):
    client = OpenAI(base_url=base_url, api_key=api_key)
    with client:
        client.chat.completions.create(model="policy", messages=opening(data))
    return 1.0


async def unfit(data, *, base_url, api_key, http_client):
    await asked(client_of(base_url, api_key, http_client), opening(data))
    return {"answers": {"42"}}


async def unrewarding(data, *, base_url, api_key, http_client):
    await asked(client_of(base_url, api_key, http_client), opening(data))
    return "good"


async def swallowing(data, *, base_url, api_key, http_client):
    """Takes every failed call for a wrong answer."""
    try:
        await asked(client_of(base_url, api_key, http_client).with_options(max_retries=0), opening(data))
    except OpenAIError:
        return 0.0
    return 1.0


async def insisting(data, *, base_url, api_key, http_client):
    client = client_of(base_url, api_key, http_client).with_options(max_retries=0)
    for _ in range(30):
        try:
            await asked(client, opening(data))
        except OpenAIError as error:
            failure = error
        else:
            return 1.0
    raise failure


async def blaming(data, *, base_url, api_key, http_client):
    """Makes an error of its own of every other."""
    client, broken = client_of(base_url, api_key, http_client).with_options(max_retries=0), None
    try:
        await asked(client, opening(data))
    except OpenAIError as error:
        broken = str(error)
    if broken:
        raise ValueError(broken)
    return 1.0


async def marking(data, *, base_url, api_key, http_client):
    http_client.headers["x-agent"] = "me"
    return await sound(data, base_url=base_url, api_key=api_key, http_client=http_client)


async def particular(data, *, base_url, api_key, http_client):
    """Believes that it knows what keys look like."""
    if not api_key.startswith("sk-agentrl"):
        raise ValueError("a strange key")
    return await sound(data, base_url=base_url, api_key=api_key, http_client=http_client)


async def rewriting(data, *, base_url, api_key, http_client):
    """Shortens what was said."""
    client, messages = client_of(base_url, api_key, http_client), opening(data)
    await asked(client, messages)
    await asked(client, [*messages, {"role": "assistant", "content": "…"}, {"role": "user", "content": "Again."}])
    return 1.0


async def homebound(data, *, base_url, api_key, http_client):
    """Works only where it was written."""
    if "agentrl.worker.__main__" in sys.modules or sys.modules["__main__"].__spec__.name.startswith("agentrl.worker"):
        return 0.0
    return await sound(data, base_url=base_url, api_key=api_key, http_client=http_client)


async def changing(data, *, base_url, api_key, http_client):
    """Changes the task that it is given, which is its own."""
    data["question"] += " Please."
    return await sound(data, base_url=base_url, api_key=api_key, http_client=http_client)


async def answering(data, *, base_url, api_key, http_client):
    message = await asked(client_of(base_url, api_key, http_client), opening(data))
    return {"answer": message.content}


def plain(data, *, base_url, api_key):
    """Is not async, which worker processes allow."""
    with OpenAI(base_url=base_url, api_key=api_key) as client:
        client.chat.completions.create(model="policy", messages=opening(data))
    return 1.0
