"""One question, one answer."""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI

from agentrl_agents.tasks import question, score

SYSTEM = "Solve the problem. The last number you write is your answer."


class MathAgent:
    """Asks once. The reward is 1 for the right number, 0 for any other."""

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> float:
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        reply = await client.chat.completions.create(
            model="policy",
            messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": question(data)}],
        )
        return score(reply.choices[0].message.content, data)
