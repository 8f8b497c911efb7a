"""Real templates behind the gateway: what an agent of a family is answered, and what its next prompt holds."""

from __future__ import annotations

import asyncio

import openai
import pytest
from tests.gateway.conftest import CONTEXT, ScriptedBackend
from tests.tokens.families import tokenizer

from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.inference.contract import Capabilities
from agentrl.tokens.selection import load_renderer

ASK, MORE = {"role": "user", "content": "What is 3 + 4?"}, {"role": "user", "content": "And 5?"}


@pytest.fixture(scope="module")
def behind():
    """A family's gateway: texts that its backend writes in, the session and the agent's messages out."""
    gateways = {}

    def behind(name, *texts):
        if name not in gateways:
            renderer = load_renderer(tokenizer(name))
            gateways[name] = Gateway(EngineCompleter(ScriptedBackend(renderer), Capabilities(CONTEXT, 8), renderer))
        gateway = gateways[name]
        backend = gateway.completer.backend
        backend.requests.clear()
        backend.script[:] = [backend.renderer.vocabulary.encode(text) for text in texts]
        session = gateway.open_session(SessionSettings(training=True))

        def ask(*messages):
            async def create():
                async with openai.AsyncOpenAI(
                    base_url=session.base_url, api_key=session.api_key, http_client=session.http_client
                ) as client:
                    return await client.chat.completions.create(model="x", messages=messages)

            return asyncio.run(create()).choices[0].message.model_dump()

        return session, backend, ask

    yield behind
    for gateway in gateways.values():
        gateway.stop()


def test_an_end_of_turn_is_no_part_of_what_the_agent_reads_nor_of_the_next_prompt(behind):
    session, backend, ask = behind("phi-3.5", "7<|end|>", "8<|endoftext|>")
    answer = ask(ASK)
    assert answer["content"] == "7"
    assert ask(ASK, answer, MORE)["content"] == "8"
    text = backend.renderer.vocabulary.decode(backend.requests[1].prompt_ids)
    assert text.count("<|end|>") == 3
    assert session.calls[1].parent == session.calls[0].id


@pytest.mark.parametrize("way", ["unchanged", "without thinking", "thinking inside"])
@pytest.mark.parametrize("name", ["deepseek-r1", "deepseek-v3"])
def test_a_turn_whose_thinking_the_prompt_opened_is_found_however_it_comes_back(behind, name, way):
    end = "<｜end▁of▁sentence｜>"
    session, backend, ask = behind(name, f"Add.\n</think>\n\n7{end}", f"Again.</think>8{end}")
    answer = ask(ASK)
    assert (answer["content"], answer["reasoning_content"]) == ("7", "Add.")
    if way != "unchanged":
        thought = answer.pop("reasoning_content")
        answer["content"] = f"<think>{thought}</think>7" if way == "thinking inside" else "7"
    assert ask(ASK, answer, MORE)["content"] == "8"
    first, second = session.calls
    assert second.parent == first.id
    assert second.fork_reason != "history edited"
    assert "Add." not in backend.renderer.vocabulary.decode(backend.requests[1].prompt_ids)
