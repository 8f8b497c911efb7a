"""The agent ``plugin-name``: a question, and a reward for the right number."""

from __future__ import annotations

import re
from typing import Any

from openai import AsyncOpenAI

SYSTEM = "Solve the problem. The last number you write is your answer."


class PluginNameAgent:
    """What ``__init__`` takes beside ``self`` are the keys of ``agent.kwargs``."""

    def __init__(self, system: str = SYSTEM) -> None:
        self.system = system

    async def run(
        self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any
    ) -> float:
        """Do the task ``data``, and return the reward."""
        client = AsyncOpenAI(
            base_url=base_url, api_key=api_key, http_client=http_client
        )
        reply = await client.chat.completions.create(
            model="policy",
            messages=[
                {"role": "system", "content": self.system},
                {"role": "user", "content": data["question"]},
            ],
        )
        return score(reply.choices[0].message.content or "", str(data["answer"]))


def score(text: str, truth: str) -> float:
    """1 where the last number of a text is the truth, else 0."""
    numbers = re.findall(r"-?\d+", text)
    return float(numbers[-1:] == [truth])
