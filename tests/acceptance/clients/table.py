"""The clients: what each is installed from, and the model's part in its tool loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TURNS = 5


@dataclass(frozen=True)
class Client:
    """One client, and a way in which it speaks to a model."""

    name: str
    driver: str
    """The module of ``drivers`` that runs it."""
    requirements: tuple[str, ...]
    """What pip installs for it; for a command of Node, what npm installs."""
    arguments: tuple[str, ...] = ()
    """Arguments of the driver."""
    tool: str = "add"
    call: Callable[[int], dict[str, Any]] | None = None
    """Gives the arguments of the tool's call in a turn; by default two summands."""
    last: tuple[str, Any] | None = None
    """The tool by which the loop ends, with its arguments, where a text does not end it."""
    node: bool = False

    def script(self) -> list[str]:
        """What the model says: calls of the tool, then an answer."""
        made = [_called(self.tool, self.call(turn) if self.call else {"a": turn, "b": 1}) for turn in range(TURNS)]
        return [*made, _called(*self.last) if self.last else "The sum is 5."]


def _called(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def _run(turn: int) -> dict[str, Any]:
    return {"cmd": f"echo {turn}"}


def _echo(turn: int) -> dict[str, Any]:
    return {"command": f"echo {turn}", "description": "say a number"}


PYDANTIC = ("pydantic-ai-slim[openai,anthropic]==2.68.0",)
LANGGRAPH = ("langgraph==1.2.24", "langchain==1.5.2", "langchain-openai==1.7.4", "langchain-anthropic==1.7.10")
LITELLM = ("litellm==1.110.2",)
STRANDS = ("strands-agents[openai,anthropic]==1.62.0",)
CAMEL = ("camel-ai==0.2.90", "mcp<2")
SMOLAGENTS = ("smolagents[openai,litellm]==1.26.0",)

SHORT = ("codex", "claude", "litellm, chat")
"""The clients of a short run, by the beginnings of their names."""

CLIENTS = (
    Client("pydantic-ai, Responses", "pydantic_ai_loop", PYDANTIC, ("responses",)),
    Client("pydantic-ai, Responses, streamed", "pydantic_ai_loop", PYDANTIC, ("responses", "stream")),
    Client("pydantic-ai, chat", "pydantic_ai_loop", PYDANTIC, ("chat",)),
    Client("pydantic-ai, chat, streamed", "pydantic_ai_loop", PYDANTIC, ("chat", "stream")),
    Client("pydantic-ai, Messages", "pydantic_ai_loop", PYDANTIC, ("messages",)),
    Client("pydantic-ai, Messages, streamed", "pydantic_ai_loop", PYDANTIC, ("messages", "stream")),
    Client("LangGraph, chat", "langgraph_loop", LANGGRAPH, ("chat",)),
    Client("LangGraph, chat, streamed", "langgraph_loop", LANGGRAPH, ("chat", "stream")),
    Client("LangGraph, Responses", "langgraph_loop", LANGGRAPH, ("responses",)),
    Client("LangGraph, Responses, streamed", "langgraph_loop", LANGGRAPH, ("responses", "stream")),
    Client("LangGraph, Messages", "langgraph_loop", LANGGRAPH, ("messages",)),
    Client("LangGraph, Messages, streamed", "langgraph_loop", LANGGRAPH, ("messages", "stream")),
    Client("smolagents, chat", "smolagents_loop", SMOLAGENTS, ("chat",), last=("final_answer", {"answer": "5"})),
    Client("smolagents, litellm", "smolagents_loop", SMOLAGENTS, ("litellm",), last=("final_answer", {"answer": "5"})),
    Client("strands, chat", "strands_loop", STRANDS, ("chat",)),
    Client("strands, Responses", "strands_loop", STRANDS, ("responses",)),
    Client("strands, Messages", "strands_loop", STRANDS, ("messages",)),
    Client("litellm, chat", "litellm_loop", LITELLM, ("chat",)),
    Client("litellm, chat, streamed", "litellm_loop", LITELLM, ("chat", "stream")),
    Client("litellm, Messages", "litellm_loop", LITELLM, ("messages",)),
    Client("CAMEL, chat", "camel_loop", CAMEL, ("chat",)),
    Client("CAMEL, chat, streamed", "camel_loop", CAMEL, ("chat", "stream")),
    Client("Codex CLI", "codex_loop", ("@openai/codex@0.171.0",), tool="exec_command", call=_run, node=True),
    Client(
        "Claude Code", "claude_code_loop", ("@anthropic-ai/claude-code@2.1.197",), tool="Bash", call=_echo, node=True
    ),
)
