"""The requests of Claude Code in a loop of tools: every one begins with another block, and all are one chain."""

from __future__ import annotations

import asyncio
import copy

import anthropic
import httpx2
import pytest
from tests.gateway.conftest import Connection, ScriptedBackend
from tests.gateway.messages.conftest import assembled

from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.gateway.normalise import Normalisers, claude_code_billing_header
from agentrl.inference.contract import Capabilities

EPHEMERAL = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
TOOLS = [
    {
        "name": "Bash",
        "description": "Executes a bash command and returns its output.",
        "input_schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {"command": {"type": "string"}, "description": {"type": "string"}},
            "required": ["command"],
            "additionalProperties": False,
        },
    },
    {"name": "Read", "description": "Reads a file.", "input_schema": {"type": "object", "properties": {}}},
]
BETAS = ["claude-code-20250219", "interleaved-thinking-2025-05-14", "context-management-2025-06-27"]
COMMANDS = ["ls", "cat sums.py", "python sums.py", "sed -i s/12/34/ sums.py", "python sums.py"]
SCRIPT = [
    *(
        f'<tool_call>\n{{"name": "Bash", "arguments": {{"command": "{command}"}}}}\n</tool_call>'
        for command in COMMANDS
    ),
    "The sum is right now.",
]


def request(number: int, messages: list[dict]) -> dict:
    """The body of a request: its first block of the system differs each time, and the marks of the cache move on."""
    header = f"x-anthropic-billing-header: cc_version=2.1.224.74{number}; cc_entrypoint=cli; cch=fa69{number};"
    sent = copy.deepcopy(messages)
    sent[-1]["content"][-1] |= EPHEMERAL
    return {
        "model": "claude-opus-5",
        "max_tokens": 32000,
        "messages": sent,
        "system": [
            {"type": "text", "text": header},
            {"type": "text", "text": "You are Claude Code, Anthropic's official CLI for Claude."} | EPHEMERAL,
            {"type": "text", "text": "\nYou are an interactive agent.\n\nWorking directory: /sums"} | EPHEMERAL,
        ],
        "tools": TOOLS,
        "metadata": {"user_id": f'{{"session_id": "{number}"}}'},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
    }


def results(answer: anthropic.types.Message, number: int, *, reminded: bool) -> list[dict]:
    """What Claude Code sends of an answer: the blocks as they were given, results, and if so a reminder."""
    blocks = [block.to_dict() for block in answer.content]
    texts = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": f"output {number}", "is_error": number == 2}
        for block in blocks
        if block["type"] == "tool_use"
    ]
    if number == 1 and reminded:
        texts.append({"type": "text", "text": "<system-reminder>\nThe todo list is empty.\n</system-reminder>"})
    turn = [{"role": "assistant", "content": blocks}, {"role": "user", "content": texts}]
    if number == 3:
        turn.append({"role": "system", "content": [{"type": "text", "text": "The user has opened sums.py."}]})
    return turn


@pytest.fixture
def claude_code(renderer):
    """A gateway with the rules that are on by default, and its backend."""
    backend = ScriptedBackend(renderer)
    rules = Normalisers([("claude-code-billing-header", claude_code_billing_header)])
    gateway = Gateway(EngineCompleter(backend, Capabilities(8192, 8), renderer), normalisers=rules)
    gateway.start()
    yield gateway, backend
    gateway.stop()


@pytest.mark.parametrize("thinks", [True, False], ids=["thinking", "reminders"])
def test_a_loop_of_five_tools_is_one_chain(claude_code, thinks):
    """The template drops thinking once the user says something, so that only a policy without it is reminded here."""
    gateway, backend = claude_code
    session = gateway.open_session(SessionSettings(training=True))
    backend.says(*(f"<think>\nStep {n}.\n</think>\n\n{text}" if thinks else text for n, text in enumerate(SCRIPT)))

    async def run() -> tuple[list[anthropic.types.Message], list[int]]:
        messages = [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder>\nNothing is to be remembered.\n</system-reminder>\n"},
                    {"type": "text", "text": "Mend the sum."},
                ],
            }
        ]
        answers, counted = [], []
        http_client = Connection(gateway, httpx2, in_process=False).http_client()
        base_url = session.base_url.removesuffix("/v1")  # As ANTHROPIC_BASE_URL has it.
        async with anthropic.AsyncAnthropic(
            base_url=base_url, auth_token=session.api_key, http_client=http_client
        ) as client:
            for number in range(len(SCRIPT)):
                body = request(number, messages)
                about = {name: body[name] for name in ("model", "messages", "system", "tools", "thinking")}
                counted.append((await client.beta.messages.count_tokens(**about, betas=BETAS)).input_tokens)
                stream = await client.beta.messages.create(**body, stream=True, betas=BETAS)
                answers.append(assembled([event async for event in stream]))
                messages += results(answers[-1], number, reminded=not thinks)
        return answers, counted

    answers, counted = asyncio.run(run())
    assert [answer.content[-1].input["command"] for answer in answers[:-1]] == COMMANDS
    assert [answer.stop_reason for answer in answers] == ["tool_use"] * 5 + ["end_turn"]
    assert [answer.usage.input_tokens for answer in answers] == counted
    calls = session.calls
    assert [call.parent for call in calls] == [None, *(call.id for call in calls[:-1])]
    assert [{each.rule for each in call.normalised} for call in calls] == [{"claude-code-billing-header"}] * 6
    assert {name for call in calls for name in call.unmet} == {"reasoning_effort", "tool_result.is_error"}
    assert "billing" not in backend.renderer.vocabulary.decode(backend.requests[-1].prompt_ids)
    assert [call.fork_reason for call in calls] == [None] * 6
    for before, after in zip(backend.requests, backend.requests[1:], strict=False):
        assert after.prompt_ids[: len(before.prompt_ids)] == before.prompt_ids
