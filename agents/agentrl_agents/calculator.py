"""A question, and a calculator to answer it with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from openai import AsyncOpenAI

from agentrl import PolicyError
from agentrl_agents.expressions import evaluate
from agentrl_agents.tasks import question, score

if TYPE_CHECKING:
    from openai.types.chat import (
        ChatCompletionMessageParam,
        ChatCompletionMessageToolCallUnion,
        ChatCompletionToolParam,
    )

SYSTEM = "Solve the problem with the calculator."
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluates numbers, + - * and brackets.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}


class CalculatorAgent:
    """Lets the model call a tool before it answers; it is asked at most ``max_turns`` times.

    The reward is 1 for the right number, 0 for any other and where the model never answers. A call that
    makes no sense is the model's mistake: the tool says so, and the conversation goes on.
    """

    def __init__(self, max_turns: int = 3) -> None:
        self.max_turns = max_turns

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> float:
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        messages: list[ChatCompletionMessageParam] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question(data)},
        ]
        for _ in range(self.max_turns):
            reply = await client.chat.completions.create(model="policy", messages=messages, tools=[TOOL])
            message = reply.choices[0].message
            if not message.tool_calls:
                return score(message.content, data)
            messages.append(cast("ChatCompletionMessageParam", message.model_dump(exclude_none=True)))
            messages += [{"role": "tool", "tool_call_id": call.id, "content": use(call)} for call in message.tool_calls]
        raise PolicyError(f"no answer within {self.max_turns} turns", limit="turns")


def use(call: ChatCompletionMessageToolCallUnion) -> str:
    """What the calculator answers to a call."""
    if call.type != "function" or call.function.name != "calculator":
        return "Error: the only tool is calculator"
    try:
        return str(evaluate(json.loads(call.function.arguments)["expression"]))
    except (KeyError, TypeError):
        return 'Error: the arguments are {"expression": "..."}'
    except ValueError as error:
        return f"Error: {error}"
