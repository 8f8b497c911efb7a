"""A gateway before a scripted backend for each family, and an SDK client in process."""

from __future__ import annotations

import asyncio
import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx2
import openai
from tests.gateway.conftest import ScriptedBackend
from tests.tokens.families import FAMILIES, model_folder

from agentrl.gateway import EngineCompleter, Gateway, Session, SessionSettings
from agentrl.inference.contract import Capabilities
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer

__all__ = ["ASK", "TOOLS", "FamilyGateway", "family_gateway"]

ASK = {"role": "user", "content": "What is 12 * 34?"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "Works it out.",
            "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
        },
    }
]


class FamilyGateway:
    """One family's gateway; ``said`` are the prompts that the model was given, newest last."""

    def __init__(self, renderer: Renderer, end: int) -> None:
        self.renderer = renderer
        self.end = end
        self.backend = ScriptedBackend(renderer)
        self.gateway = Gateway(
            EngineCompleter(self.backend, Capabilities(context_length=8192, max_concurrency=8), renderer)
        )

    def session(self, **settings: Any) -> Session:
        return self.gateway.open_session(SessionSettings(**{"training": True, **settings}))

    def create(self, session: Session, answer: str | list[int], **request: Any) -> Any:
        """One chat completion, which the model answers with ``answer``: ids, or a text that the family's end closes."""
        vocabulary = self.renderer.vocabulary
        ids = [*vocabulary.encode(answer), self.end] if isinstance(answer, str) else answer
        self.backend.script[:] = [ids]

        async def create() -> Any:
            client = self.gateway.http_client(httpx2)
            async with openai.AsyncOpenAI(
                base_url=session.base_url, api_key=session.api_key, http_client=client, max_retries=0
            ) as sdk:
                return await sdk.chat.completions.create(**({"model": "policy", "messages": [ASK]} | request))

        return asyncio.run(create())

    @property
    def prompt(self) -> str:
        """The newest prompt, as text."""
        return self.renderer.vocabulary.decode(self.backend.requests[-1].prompt_ids)

    def written_call(self, arguments: dict[str, Any], *, tools: list[Any] = TOOLS) -> list[int]:
        """The ids of a call of ``calculate`` as the family's own template writes it after its prompt."""
        function = {"name": "calculate", "arguments": json.dumps(arguments)}
        turn = {"role": "assistant", "content": None}
        turn["tool_calls"] = [{"id": "call_0", "type": "function", "function": function}]
        template = self.renderer._template
        prompt, whole = template.text([ASK], tools), template.text([ASK, turn], tools, prompt=False)
        spoken = whole.removeprefix(prompt)
        if spoken == whole:
            bare = prompt.rstrip().removesuffix("<think>")
            assert whole.startswith(bare)
            spoken = "I see.\n</think>\n\n" + whole[len(bare) :]
        return template.up_to_end(template.vocabulary.encode(spoken))


@lru_cache
def family_gateway(name: str) -> FamilyGateway:
    """One for each family, its model loaded from a folder as any model is."""
    with tempfile.TemporaryDirectory() as folder:
        renderer = load_renderer(model_folder(name, Path(folder)))
    return FamilyGateway(renderer, renderer.vocabulary.convert_tokens_to_ids(FAMILIES[name].end))
