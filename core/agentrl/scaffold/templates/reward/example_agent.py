"""An agent whose answer is text, to train with the reward ``plugin-name``."""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI

SYSTEM = "Solve the problem. The last number you write is your answer."


async def answer(
    data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any
) -> str:
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    reply = await client.chat.completions.create(
        model="policy",
        messages=[
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": data["question"]},
        ],
    )
    return reply.choices[0].message.content or ""
