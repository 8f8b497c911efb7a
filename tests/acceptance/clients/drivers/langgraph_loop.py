"""A LangGraph agent on langchain's models: ``langgraph_loop.py chat|responses|messages [stream]``."""

import asyncio
import os
import sys

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def model(kind: str, stream: bool):
    if kind == "messages":
        return ChatAnthropic(model="claude-sonnet-4-5", max_tokens=512, streaming=stream)
    return ChatOpenAI(
        model="gpt-4o",
        base_url=os.environ["OPENAI_BASE_URL"],
        use_responses_api=kind == "responses",
        streaming=stream,
        stream_usage=True,
    )


async def main(kind: str, stream: bool) -> None:
    agent = create_agent(model(kind, stream), [add], system_prompt="You add numbers with the tool.")
    asked = {"messages": [{"role": "user", "content": "Add some numbers."}]}
    state = await agent.ainvoke(asked, {"recursion_limit": 50})
    print(state["messages"][-1].text)


asyncio.run(main(sys.argv[1], "stream" in sys.argv))
