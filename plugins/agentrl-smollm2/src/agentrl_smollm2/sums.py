"""The agent and the task sets `one-digit-sums`, which a small pretrained model learns in minutes."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from openai import AsyncOpenAI

from agentrl.tasks.contract import Task

__all__ = ["OneDigitSums", "held_out_sums", "sums"]

_HELD_OUT = 24
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")


class OneDigitSums:
    """Asks the model once. The reward is 1 where the last number of its answer is the sum, else 0."""

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> float:
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        reply = await client.chat.completions.create(
            model="policy",
            messages=[{"role": "user", "content": data["question"]}],
            max_tokens=12,
        )
        numbers = _NUMBER.findall(reply.choices[0].message.content or "")
        return float(bool(numbers) and float(numbers[-1]) == float(data["answer"]))


def sums() -> list[Task]:
    """Returns the 76 sums to train on."""
    return _split()[1]


def held_out_sums() -> list[Task]:
    """Returns the 24 sums to evaluate on; none of them is trained on with its operands swapped."""
    return _split()[0]


def _split() -> tuple[list[Task], list[Task]]:
    pairs = [(left, right) for left in range(10) for right in range(left, 10)]
    Random(0).shuffle(pairs)
    held_out: list[Task] = []
    rest: list[Task] = []
    for pair in pairs:
        tasks = _tasks(*pair)
        (held_out if len(held_out) + len(tasks) <= _HELD_OUT else rest).extend(tasks)
    return held_out, rest


def _tasks(left: int, right: int) -> list[Task]:
    return [
        {"question": f"What is {a} + {b}? Answer with the number only.", "answer": str(a + b)}
        for a, b in sorted({(left, right), (right, left)})
    ]
