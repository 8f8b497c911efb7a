"""A ``ChatAgent`` of CAMEL: ``camel_loop.py chat [stream]``."""

import os
import sys

from camel.agents import ChatAgent
from camel.models import ModelFactory
from camel.toolkits import FunctionTool
from camel.utils import BaseTokenCounter


class Counter(BaseTokenCounter):
    """Counts characters, so that nothing is fetched."""

    def count_tokens_from_messages(self, messages):
        return sum(len(str(message)) for message in messages) // 4

    def encode(self, text):
        return list(text.encode())

    def decode(self, token_ids):
        return bytes(token_ids).decode()


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a (int): The first one.
        b (int): The second one.
    """
    return a + b


model = ModelFactory.create(
    "openai-compatible-model",
    "policy",
    model_config_dict={"stream": "stream" in sys.argv},
    url=os.environ["OPENAI_BASE_URL"],
    api_key=os.environ["OPENAI_API_KEY"],
    token_counter=Counter(),
)
agent = ChatAgent(
    "You add numbers with the tool.", model=model, tools=[FunctionTool(add)], token_limit=8000, retry_attempts=1
)
answer = agent.step("Add some numbers.")
if "stream" in sys.argv:
    *_, answer = answer
print(answer.msgs[0].content)
