"""The calculator agent, written with Anthropic's SDK."""

from __future__ import annotations

from anthropic import AsyncAnthropic

from agentrl_agents.expressions import evaluate
from agentrl_agents.tasks import question, score

TOOL = {
    "name": "calculator",
    "description": "Evaluates numbers, + - * and brackets.",
    "input_schema": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
}


class AnthropicCalculator:
    """Reads its answers as streams, and sends back the blocks as they came."""

    def __init__(self, max_turns: int = 3) -> None:
        self.max_turns = max_turns

    async def run(self, data, *, base_url, api_key, http_client) -> float:
        client = AsyncAnthropic(base_url=base_url, api_key=api_key, http_client=http_client)
        messages = [{"role": "user", "content": question(data)}]
        for _ in range(self.max_turns):
            asked = {"model": "policy", "max_tokens": 1000, "messages": messages, "tools": [TOOL]}
            async with client.messages.stream(**asked, system="Solve the problem.") as stream:
                answer = await stream.get_final_message()
            results = [use(block) for block in answer.content if block.type == "tool_use"]
            if not results:
                return score("".join(block.text for block in answer.content if block.type == "text"), data)
            messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
        return 0.0


def use(block) -> dict:
    """The result of a call."""
    try:
        text = str(evaluate(block.input["expression"])) if block.name == "calculator" else "there is no such tool"
    except (KeyError, TypeError, ValueError) as error:
        text = f"error: {error}"
    return {"type": "tool_result", "tool_use_id": block.id, "content": text}
