"""`one-digit-sums`: an agent and tasks that a small pretrained model learns in minutes."""

from __future__ import annotations

from random import Random
from typing import Any

from openai import AsyncOpenAI

from agentrl.rewards.matching import NumericMatch
from agentrl.tasks.contract import Task

__all__ = ["OneDigitSums", "held_out_sums", "sums"]

_HELD_OUT = 24
_score = NumericMatch()


class OneDigitSums:
    """Asks once, in plain words. The reward is 1 for the right number, 0 for any other."""

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> float:
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        reply = await client.chat.completions.create(
            model="policy",
            messages=[{"role": "user", "content": data["question"]}],
            max_tokens=12,
        )
        return _score(reply.choices[0].message.content, data)


def sums() -> list[Task]:
    """The 76 sums to train on."""
    return _split()[1]


def held_out_sums() -> list[Task]:
    """The 24 sums to evaluate on; none of them is trained on with its operands the other way round."""
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
