"""A loop of one's own over litellm: ``litellm_loop.py chat|messages [stream]``."""

import json
import os
import sys

import litellm

KIND, STREAM = sys.argv[1], "stream" in sys.argv
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
WHERE = {
    "chat": {"model": "openai/gpt-4o", "api_base": os.environ["OPENAI_BASE_URL"]},
    "messages": {
        "model": "anthropic/claude-sonnet-4-5",
        "api_base": os.environ["ANTHROPIC_BASE_URL"],
        "api_key": os.environ["ANTHROPIC_API_KEY"],
        "max_tokens": 512,
    },
}[KIND]


def ask(messages):
    answer = litellm.completion(messages=messages, tools=[TOOL], stream=STREAM, **WHERE)
    if STREAM:
        answer = litellm.stream_chunk_builder(list(answer), messages=messages)
    return answer.choices[0].message


messages = [
    {"role": "system", "content": "You add numbers with the tool."},
    {"role": "user", "content": "Add some numbers."},
]
message = ask(messages)
while message.tool_calls:
    messages.append(message.model_dump())
    for call in message.tool_calls:
        given = json.loads(call.function.arguments)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(given["a"] + given["b"])})
    message = ask(messages)
print(message.content)
