"""The requests of the Codex command line, in the form in which it makes them, against a tool loop of five turns.

Codex asks with twelve fields, always streamed and never stored, sends its whole history each time, and reads seven
events. It runs its tools itself: a function, a custom tool of free text with a Lark grammar, and some that only
OpenAI's servers would run.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from tests.gateway.conftest import ScriptedBackend

from agentrl.gateway import EngineCompleter, Gateway
from agentrl.inference.contract import Capabilities

INSTRUCTIONS = "You are a coding agent."
PERMISSIONS = "<permissions instructions>All commands are allowed.</permissions instructions>"
ENVIRONMENT = "<environment_context>\n  <cwd>/work</cwd>\n</environment_context>"
SUMMARY = "Another agent began this. Its summary follows."
GRAMMAR = (
    'start: begin line+ end\nbegin: "*** Begin Patch" LF\nend: "*** End Patch" LF?\nline: /(.*)/ LF\n%import common.LF'
)
TOOLS = [
    {
        "type": "function",
        "name": "exec_command",
        "description": "Runs a command.",
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {"cmd": {"type": "string"}, "yield_time_ms": {"type": "number"}},
            "required": ["cmd"],
            "additionalProperties": False,
        },
    },
    {
        "type": "custom",
        "name": "apply_patch",
        "description": "Edits files.",
        "format": {"type": "grammar", "syntax": "lark", "definition": GRAMMAR},
    },
    {"type": "namespace", "name": "mcp__docs", "description": "Docs.", "tools": [{"type": "function", "name": "find"}]},
    {"type": "web_search", "external_web_access": False},
]
READ = {
    "response.created",
    "response.output_item.added",
    "response.output_text.delta",
    "response.function_call_arguments.delta",
    "response.output_item.done",
    "response.completed",
    "response.failed",
}
"""The events that are read; all others are passed over."""

PATCH = '*** Begin Patch\n*** Update File: a.py\n-print("a")\n+print("\u00fc")\n*** End Patch\n'


@pytest.fixture(scope="module")
def served(renderer) -> Iterator[Gateway]:
    gateway = Gateway(EngineCompleter(ScriptedBackend(renderer), Capabilities(4096, 8), renderer))
    gateway.start()
    yield gateway
    gateway.stop()


def calls(name: str, arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


SCRIPT = [
    f"<think>\nLook first.\n</think>\n\nI shall look.\n{calls('exec_command', {'cmd': 'ls', 'yield_time_ms': 1000})}",
    f"{calls('exec_command', {'cmd': 'cat a.py'})}\n{calls('exec_command', {'cmd': 'cat b.py'})}",
    f"<think>\nIt is a.\n</think>\n\n{calls('apply_patch', {'input': PATCH})}",
    calls("exec_command", {"cmd": "python a.py"}),
    "It prints an umlaut now.",
]


class Codex:
    """One session of the command line."""

    def __init__(self, client, base_url: str, *, thinking: bool) -> None:
        self.client = client
        self.url = f"{base_url}/responses"
        self.thinking = thinking
        self.history = [
            self.message("developer", PERMISSIONS),
            self.message("user", ENVIRONMENT),
            self.message("user", "Print an umlaut."),
        ]

    @staticmethod
    def message(role: str, text: str) -> dict:
        return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}

    def body(self) -> dict:
        return {
            "model": "gpt-5-codex",
            "instructions": INSTRUCTIONS,
            "input": self.history,
            "tools": TOOLS,
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": {"effort": "medium", "summary": "auto"} if self.thinking else None,
            "store": False,
            "stream": True,
            "include": ["reasoning.encrypted_content"] if self.thinking else [],
            "prompt_cache_key": "019ab-thread",
            "client_metadata": {"x-codex-installation-id": "i"},
        }

    async def turn(self) -> str | None:
        """Ask once, and run what is called. Returns the last message once nothing is called any more."""
        items, last, texts = [], None, []
        async with self.client.stream("POST", self.url, json=self.body()) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if event["type"] not in READ:
                    continue
                last = event["type"]
                if last == "response.output_item.done":
                    items.append(event["item"])
                elif last == "response.output_text.delta":
                    texts.append(event["delta"])
                elif last == "response.completed":
                    assert event["response"]["usage"]["input_tokens_details"]["cached_tokens"] == 0
        assert last == "response.completed"
        self.history += [self.sent_back(item) for item in items]
        results = [self.result(item) for item in items if item["type"].endswith("_call")]
        self.history += results
        return None if results else "".join(texts)

    def sent_back(self, item: dict) -> dict:
        """An item as it is kept: without ids, thinking in its encrypted form alone."""
        match item["type"]:
            case "message":
                content = [{"type": part["type"], "text": part["text"]} for part in item["content"]]
                return {"type": "message", "role": item["role"], "content": content}
            case "reasoning":
                return {
                    "type": "reasoning",
                    "summary": item["summary"],
                    "content": None,
                    "encrypted_content": item.get("encrypted_content"),
                }
            case "function_call":
                return {name: item[name] for name in ("type", "name", "arguments", "call_id")}
            case "custom_tool_call":
                return {name: item[name] for name in ("type", "status", "call_id", "name", "input")}
        raise AssertionError(item["type"])

    def result(self, item: dict) -> dict:
        kind = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}[item["type"]]
        assert item["type"] == "function_call" or item["input"] == PATCH
        return {"type": kind, "call_id": item["call_id"], "output": "Exit code: 0\nOutput:\nprint\n"}


@pytest.mark.parametrize("thinking", [True, False])
def test_a_tool_loop_of_codex_is_one_chain(connection, open_session, backend, thinking):
    backend.says(*SCRIPT)
    session = open_session()

    async def work() -> str | None:
        async with connection.http_client() as http_client:
            codex = Codex(http_client, session.base_url, thinking=thinking)
            for _ in SCRIPT[:-1]:
                assert await codex.turn() is None
            return await codex.turn()

    assert asyncio.run(work()) == SCRIPT[-1]
    parents = [None, *(call.id for call in session.calls[:-1])]
    assert [(call.parent, call.fork_reason) for call in session.calls] == [(parent, None) for parent in parents]
    assert [span.sampled is not None for span in session.tree.spans] == [False, True] * len(SCRIPT)
    assert all(call.delivered for call in session.calls)
    wished = {"reasoning_effort"} if thinking else set()
    assert {name for call in session.calls for name in call.unmet} == {"namespace", "web_search", "format"} | wished
    before = backend.requests[0].prompt_ids
    for request in backend.requests[1:]:
        assert list(request.prompt_ids[: len(before)]) == list(before)
        before = request.prompt_ids


def test_a_compacted_history_begins_anew_and_is_a_chain_again(in_process, open_session, backend):
    backend.says(*SCRIPT[:2], *SCRIPT[3:])
    session = open_session()

    async def work() -> str | None:
        async with in_process.http_client() as http_client:
            codex = Codex(http_client, session.base_url, thinking=False)
            await codex.turn()
            codex.history = [
                codex.message("user", ENVIRONMENT),
                codex.message("user", SUMMARY),
                codex.message("developer", PERMISSIONS),
                codex.message("user", "Go on."),
            ]
            await codex.turn()
            await codex.turn()
            return await codex.turn()

    assert asyncio.run(work()) == SCRIPT[-1]
    first, second, third, fourth = session.calls
    assert [first.parent, second.parent, third.parent, fourth.parent] == [None, None, second.id, third.id]
    assert [call.fork_reason for call in session.calls] == [None] * 4
