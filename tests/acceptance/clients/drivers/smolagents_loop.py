"""A tool-calling agent of smolagents: ``smolagents_loop.py chat|litellm``."""

import os
import sys

from smolagents import LiteLLMModel, OpenAIModel, ToolCallingAgent, tool


@tool
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first one.
        b: The second one.
    """
    return a + b


KINDS = {
    "chat": lambda **options: OpenAIModel("gpt-4o", **options),
    "litellm": lambda **options: LiteLLMModel("openai/gpt-4o", **options),
}
model = KINDS[sys.argv[1]](api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
print(ToolCallingAgent(tools=[add], model=model, max_steps=10, verbosity_level=0).run("Add some numbers."))
