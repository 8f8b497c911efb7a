"""Agents in which the policy runs into limits, each in its own way; run inline and in workers alike."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, BadRequestError, DefaultAsyncHttpxClient
from pydantic import BaseModel

from agentrl import PolicyError


def client(base_url, api_key):
    http_client = DefaultAsyncHttpxClient(verify=False)  # To load certificates takes longer than all the rest.
    return AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client, max_retries=0)


async def asked(base_url, api_key, messages, **fields):
    async with client(base_url, api_key) as model:
        made = await model.chat.completions.create(model="policy", messages=messages, **fields)
    return made.choices[0].message.content


def user(text="What is 2 + 3?"):
    return {"role": "user", "content": text}


LONG = [user("one two three " * 4000)]


async def looping(data, *, base_url, api_key):
    """Goes on until its history no longer fits."""
    messages = [user()]
    while True:
        said = await asked(base_url, api_key, messages)
        messages += [{"role": "assistant", "content": said}, user("And then? " * 6)]


async def at_once(data, *, base_url, api_key):
    """Does not get to its first call."""
    await asked(base_url, api_key, LONG)


async def responding(data, *, base_url, api_key):
    async with client(base_url, api_key) as model:
        await model.responses.create(model="policy", input=LONG[0]["content"])


async def streaming(data, *, base_url, api_key):
    await asked(base_url, api_key, [user()])
    async with client(base_url, api_key) as model:
        stream = await model.chat.completions.create(model="policy", messages=LONG, stream=True)
        async for _ in stream:
            pass


async def anthropic(data, *, base_url, api_key):
    root = base_url.removesuffix("/v1")
    async with AsyncAnthropic(base_url=root, api_key=api_key, max_retries=0) as model:
        await model.messages.create(model="policy", max_tokens=8, messages=[user()])
        await model.messages.create(model="policy", max_tokens=8, messages=LONG)


async def framework(data, *, base_url, api_key):
    """Names the error's cause only."""
    try:
        await asked(base_url, api_key, LONG)
    except BadRequestError as error:
        raise RuntimeError("the model could not be called") from error


async def retelling(data, *, base_url, api_key):
    """Repeats the error's words only."""
    said = ""
    try:
        await asked(base_url, api_key, LONG)
    except BadRequestError as error:
        said = f"LLM call failed: {error.message}"
    raise RuntimeError(said)


async def grouped(data, *, base_url, api_key):
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asked(base_url, api_key, LONG))


async def giving_up(data, *, base_url, api_key):
    try:
        await asked(base_url, api_key, LONG)
    except BadRequestError as error:
        raise PolicyError("the history got too long") from error


async def saving_itself(data, *, base_url, api_key):
    """Knows what to do about it."""
    await asked(base_url, api_key, [user()])
    try:
        await asked(base_url, api_key, LONG)
    except BadRequestError:
        return 0.7


async def raw(data, *, base_url, api_key):
    async with httpx.AsyncClient() as model:
        body = {"model": "policy", "messages": LONG}
        answer = await model.post(f"{base_url}/chat/completions", json=body, headers={"x-api-key": api_key})
        answer.raise_for_status()


async def going_on(data, *, base_url, api_key):
    """Overcomes it, and then breaks for a reason of its own."""
    try:
        await asked(base_url, api_key, LONG)
    except BadRequestError:
        await asked(base_url, api_key, [user()])
    async with httpx.AsyncClient() as tool:
        (await tool.get(f"{base_url}/no-such-tool")).raise_for_status()


async def breaking(data, *, base_url, api_key):
    with contextlib.suppress(BadRequestError):
        await asked(base_url, api_key, LONG)
    raise LookupError("no such tool")


class Answer(BaseModel):
    text: str


async def parsing(data, *, base_url, api_key):
    """Its SDK cannot read an answer that was cut."""
    async with client(base_url, api_key) as model:
        await model.chat.completions.parse(
            model="policy", messages=[user()], response_format=Answer, max_tokens=3, temperature=1.0
        )


async def cut(data, *, base_url, api_key):
    """Lives with an answer that was cut."""
    await asked(base_url, api_key, [user()], max_tokens=1)
    return 0.3


async def out_of_turns(data, *, base_url, api_key):
    await asked(base_url, api_key, [user()])
    raise PolicyError("no answer within 1 turn", limit="turns")


async def out_of_turns_with_words(data, *, base_url, api_key):
    said = await asked(base_url, api_key, [user()])
    raise PolicyError("no answer within 1 turn", answer=said or "nothing", limit="turns")


AGENTS = (
    *(looping, at_once, responding, streaming, anthropic, framework, retelling, grouped, giving_up, raw),
    *(saving_itself, going_on, breaking, parsing, cut, out_of_turns, out_of_turns_with_words),
)


async def by_name(data, *, base_url, api_key):
    """The agent that the task names."""
    agents = {agent.__name__: agent for agent in AGENTS}
    return await agents[data["agent"]](data, base_url=base_url, api_key=api_key)
