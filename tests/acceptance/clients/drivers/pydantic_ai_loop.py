"""pydantic-ai with either provider: ``pydantic_ai_loop.py responses|chat|messages [stream]``."""

import asyncio
import os
import sys

from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

KINDS = {"responses": OpenAIResponsesModel, "chat": OpenAIChatModel}


def model(kind: str):
    if kind == "messages":
        import anthropic

        client = anthropic.AsyncAnthropic(
            base_url=os.environ["ANTHROPIC_BASE_URL"], api_key=os.environ["ANTHROPIC_API_KEY"]
        )
        return AnthropicModel("claude-sonnet-4-5", provider=AnthropicProvider(anthropic_client=client))
    provider = OpenAIProvider(base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
    return KINDS[kind]("gpt-5", provider=provider)


async def main(kind: str, stream: bool) -> None:
    agent = Agent(model(kind), instructions="You add numbers with the tool.")

    @agent.tool_plain
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    if stream:
        async with agent.run_stream("Add some numbers.") as run:
            print(await run.get_output())
    else:
        print((await agent.run("Add some numbers.")).output)


asyncio.run(main(sys.argv[1], "stream" in sys.argv))
