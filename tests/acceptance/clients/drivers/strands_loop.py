"""An agent of strands: ``strands_loop.py chat|responses|messages``. It streams always."""

import os
import sys

from strands import Agent, tool


@tool
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first one.
        b: The second one.
    """
    return a + b


def model(kind: str):
    if kind == "messages":
        from strands.models.anthropic import AnthropicModel

        arguments = {"base_url": os.environ["ANTHROPIC_BASE_URL"], "api_key": os.environ["ANTHROPIC_API_KEY"]}
        return AnthropicModel(client_args=arguments, model_id="claude-sonnet-4-5", max_tokens=512)
    arguments = {"base_url": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
    if kind == "responses":
        from strands.models.openai_responses import OpenAIResponsesModel

        return OpenAIResponsesModel(client_args=arguments, model_id="gpt-5")
    from strands.models.openai import OpenAIModel

    return OpenAIModel(client_args=arguments, model_id="gpt-4o")


agent = Agent(
    model=model(sys.argv[1]), tools=[add], system_prompt="You add numbers with the tool.", callback_handler=None
)
print(agent("Add some numbers."))
