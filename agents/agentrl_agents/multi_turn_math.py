"""A question, and another try after a wrong answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openai import AsyncOpenAI

from agentrl_agents.tasks import question, score

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

SYSTEM = "Solve the problem. You will hear whether you are right."
AGAIN = "That is wrong. Try again."


class MultiTurnMathAgent:
    """Asks until the answer is right, at most ``max_turns`` times.

    Each answer has its own reward: 0 for a wrong one, 1 for a right one, halved by each try before it.
    So the episode's reward, which is their sum, is at most 1, and being right at once is worth most.
    """

    def __init__(self, max_turns: int = 2) -> None:
        self.max_turns = max_turns

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> dict[str, float]:
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        messages: list[ChatCompletionMessageParam] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question(data)},
        ]
        rewards: dict[str, float] = {}
        for turn in range(self.max_turns):
            reply = await client.chat.completions.create(model="policy", messages=messages)
            text = reply.choices[0].message.content
            rewards[reply.id] = score(text, data) * 0.5**turn
            if rewards[reply.id]:
                break
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": AGAIN}]
        return rewards
