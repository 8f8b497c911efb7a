"""The conformance suite of dialects, as a plugin's author runs it, on each dialect that there is here."""

from __future__ import annotations

from typing import ClassVar

import pytest
from tests.gateway.readers import read_chat, read_completions, read_messages, read_responses
from tests.gateway.telegraph import GATE

from agentrl.testing import DialectConformance

pytest_plugins = ["agentrl.testing"]

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
ASK = [{"role": "user", "content": "What is 12 * 34?"}]
CHAT_TOOLS = [
    {"type": "function", "function": {"name": "calculate", "parameters": SCHEMA}},
    {"type": "custom", "custom": {"name": "shell"}},
]
RESPONSES_TOOLS = [
    {"type": "function", "name": "calculate", "parameters": SCHEMA},
    {"type": "custom", "name": "shell"},
]


class TestChat(DialectConformance):
    dialect = "chat"
    asks = (
        {"messages": ASK, "model": "any"},
        {"messages": ASK, "tools": CHAT_TOOLS},
        {"messages": ASK, "tools": CHAT_TOOLS[::-1], "parallel_tool_calls": False},
        {"messages": ASK, "n": 3, "logprobs": True, "top_logprobs": 2},
    )
    streams = True
    overrides: ClassVar = {"temperature": 0.5, "max_tokens": 9, "seed": 3}

    @classmethod
    def read(cls, body, *, streamed):
        return read_chat(body, streamed=streamed)


class TestCompletions(DialectConformance):
    dialect = "completions"
    asks = ({"prompt": "12 * 34 ="}, {"prompt": ["a", "b"], "n": 2, "logprobs": 2}, {"prompt": "x", "echo": True})
    streams = True

    @classmethod
    def read(cls, body, *, streamed):
        return read_completions(body, streamed=streamed)


class TestResponses(DialectConformance):
    dialect = "responses"
    path = "/responses"
    asks = (
        {"input": "What is 12 * 34?"},
        {"input": ASK, "tools": RESPONSES_TOOLS, "include": ["reasoning.encrypted_content"], "store": False},
        {"input": ASK, "tools": RESPONSES_TOOLS[::-1], "reasoning": {"summary": "auto"}},
    )
    streams = True

    @classmethod
    def read(cls, body, *, streamed):
        return read_responses(body, streamed=streamed)


class TestMessages(DialectConformance):
    dialect = "messages"
    path = "/messages"
    asks = (
        {"messages": ASK, "max_tokens": 64},
        {"messages": ASK, "max_tokens": 64, "tools": [{"name": "calculate", "input_schema": SCHEMA}]},
        {"messages": ASK, "max_tokens": 5, "thinking": {"type": "adaptive", "display": "omitted"}},
    )
    streams = True

    @classmethod
    def read(cls, body, *, streamed):
        return read_messages(body, streamed=streamed)


class TestTelegraph(DialectConformance):
    dialect = "tests.gateway.telegraph:Telegraph"
    path = "/telegraph"
    asks = ({"text": "12 * 34?"},)
    overrides: ClassVar = {}

    @pytest.fixture(autouse=True)
    def open_gate(self):
        GATE.set()
