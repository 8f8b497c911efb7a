"""Laws of recording over random conversations in several templates: tools, thinking, edits, branches, streams, retries.

Agents here speak bytes, as clients do: keys in any order, answers whole or streamed, connections that break off before
the end, requests that come again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.algorithms.algorithms import grpo
from tests.gateway.family_gateway import family_gateway

from agentrl.algorithms.batch import build_batch
from agentrl.errors import BackendError
from agentrl.gateway import EngineCompleter, Gateway, Session, SessionSettings
from agentrl.gateway.contract import Exchange
from agentrl.inference.contract import Capabilities, Chunk, GenerationRequest
from agentrl.rollout.contract import Episode, EpisodeKey, Group, delivered_calls
from agentrl.testing.parts import tiny_renderer
from agentrl.tokens.contract import Position
from agentrl.tokens.renderer import Renderer

TEMPLATES = ["tiny", "smollm2", "qwen3", "llama-3.2", "granite-4", "gemma-3"]
TOOLS = [{"type": "function", "function": {"name": "calculate", "parameters": {"type": "object"}}}]
CALL = '<tool_call>\n{"name": "calculate", "arguments": {"n": 1, "é": [null]}}\n</tool_call>'
ANSWERS = [
    "It is 408.",
    "<think>\nHm.\n</think>\n\nIt is 408.",
    CALL,
    f"See: {CALL}\n{CALL}",
    "naïve 日本 🎈",
    "",
    " \n",
]
STEP = st.fixed_dictionaries(
    {
        "continue": st.sampled_from([-1, -1, -1, -1, 0, 1, 2, 3]),  # Mostly the newest conversation.
        "new": st.sampled_from(["user", "results", "user", "system"]),
        "edit": st.sampled_from([None, None, None, None, None, None, "content", "drop", "thinking"]),
        "text": st.sampled_from(["What is 12 * 34?", "Check the answer.", "é\n", "<|im_end|>"]),
        "tools": st.booleans(),
        "answer": st.sampled_from(ANSWERS),
        "length": st.booleans(),
        "way": st.sampled_from(["whole", "streamed", "left", "lost", "failed", "twice"]),
        "parts": st.integers(1, 6),
        "reordered": st.booleans(),
    }
)


@dataclass
class NumberedBackend:
    """Says its script token by token; no two tokens that it ever samples have the same log-probability."""

    script: list[Any] = field(default_factory=list)
    requests: list[tuple[GenerationRequest, list[int]]] = field(default_factory=list)
    """What it was asked, and the ids that it had given when that ended."""
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        said = self.script.pop(0)
        if isinstance(said, Exception):
            raise said
        ids, finish = said
        given: list[int] = []
        self.requests.append((request, given))
        for number, token in enumerate(ids, 1):
            last = number == len(ids)
            given.append(token)
            yield Chunk((token,), (-1e-9 * (1 + next(self.numbers)),), (0,), finish=finish if last else None)
            await asyncio.sleep(0)


@dataclass
class Agent:
    """Makes the calls of random steps and keeps the conversations that it has had."""

    gateway: Gateway
    backend: NumberedBackend
    renderer: Renderer
    end: int
    session: Session
    conversations: list[list[dict[str, Any]]] = field(default_factory=lambda: [[]])

    async def take(self, step: dict[str, Any]) -> None:
        messages = self.history(step)
        body = {"model": "any", "messages": messages, **({"tools": TOOLS} if step["tools"] else {})}
        if step["way"] in ("streamed", "left"):
            body["stream"] = True
        if step["reordered"]:
            body = _reordered(body)
        vocabulary = self.renderer.vocabulary
        ids = [*vocabulary.encode(step["answer"]), self.end]
        said = (ids[:-1] or ids, "length") if step["length"] and len(ids) > 1 else (ids, "stop")
        self.backend.script[:] = [BackendError("it broke"), said] if step["way"] == "failed" else [said, said]
        raw = json.dumps(body, ensure_ascii=step["reordered"]).encode()
        kept = await self.ask(raw, step)
        if step["way"] == "twice":  # The same request again, which is another sample.
            kept = await self.ask(raw, step)
        if kept is not None:
            self.conversations.append([*messages, kept])

    async def ask(self, raw: bytes, step: dict[str, Any]) -> dict[str, Any] | None:
        """What the client has of the answer, as it would send it back."""
        reply = await self.gateway.answer(self.exchange(raw))
        if step["way"] == "failed" and reply.status != 400:
            assert reply.status == 503
            reply = await self.gateway.answer(self.exchange(raw, retry=1))
        if step["way"] == "lost":
            reply.lost()
            reply = await self.gateway.answer(self.exchange(raw, retry=1))
        if reply.status == 400:
            return None
        assert reply.status == 200, reply.body
        if isinstance(reply.body, bytes):
            return json.loads(reply.body)["choices"][0]["message"]
        parts: list[bytes] = []
        async for part in reply.body:
            parts.append(part)
            if step["way"] == "left" and len(parts) == step["parts"]:
                reply.lost()
                break
        await reply.body.aclose()
        await asyncio.sleep(0)
        return _said(b"".join(parts))

    def exchange(self, raw: bytes, retry: int = 0) -> Exchange:
        headers = {"authorization": f"Bearer {self.session.api_key}", "x-stainless-retry-count": str(retry)}
        return Exchange("POST", "/v1/chat/completions", raw, headers)

    def history(self, step: dict[str, Any]) -> list[dict[str, Any]]:
        messages = list(self.conversations[step["continue"] % len(self.conversations)])
        if step["edit"] == "content" and messages:
            messages[-1] = messages[-1] | {"content": "Something else."}
        if step["edit"] == "drop" and len(messages) > 1:
            del messages[-2]
        if step["edit"] == "thinking":
            messages = [{k: v for k, v in each.items() if k != "reasoning_content"} for each in messages]
        calls = (messages[-1].get("tool_calls") or []) if messages else []
        results = [{"role": "tool", "tool_call_id": call["id"], "content": step["text"]} for call in calls]
        user = {"role": "user", "content": step["text"]}
        system = {"role": "system", "content": "Brief."}
        return messages + {"user": [user], "results": results or [user], "system": [system, user]}[step["new"]]


def _reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reordered(value[key]) for key in reversed(value)}
    return [_reordered(each) for each in value] if isinstance(value, list) else value


def _said(raw: bytes) -> dict[str, Any]:
    """The message that a client makes of the events that it has."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: dict[int, dict[str, Any]] = {}
    for line in raw.split(b"\n\n"):
        if not line.startswith(b"data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            if delta.get("reasoning_content"):
                message["reasoning_content"] = message.get("reasoning_content", "") + delta["reasoning_content"]
            for call in delta.get("tool_calls") or ():
                known = calls.setdefault(call["index"], {"function": {"name": "", "arguments": ""}})
                known.update({key: call[key] for key in ("id", "type") if call.get(key)})
                known["function"]["name"] += call["function"].get("name") or ""
                known["function"]["arguments"] += call["function"].get("arguments") or ""
    return message | ({"tool_calls": [calls[index] for index in sorted(calls)]} if calls else {})


def _gateway(renderer: Renderer, first: int) -> tuple[Gateway, NumberedBackend]:
    backend = NumberedBackend(numbers=itertools.count(first))
    return Gateway(EngineCompleter(backend, Capabilities(8192, 8), renderer)), backend


def _played(name: str, steps: list[dict[str, Any]], first: int = 0) -> tuple[Session, NumberedBackend, Renderer]:
    renderer = tiny_renderer() if name == "tiny" else family_gateway(name).renderer
    end = renderer.vocabulary.convert_tokens_to_ids("<|im_end|>") if name == "tiny" else family_gateway(name).end
    gateway, backend = _gateway(renderer, first)
    session = gateway.open_session(SessionSettings(training=True))
    agent = Agent(gateway, backend, renderer, end, session)

    async def run() -> None:
        for step in steps:
            await agent.take(step)

    asyncio.run(run())
    gateway.stop()
    return session, backend, renderer


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=2, max_size=7))
def test_a_record_is_what_the_engine_had_and_each_sampled_token_trains_once(name, steps):
    session, backend, renderer = _played(name, steps)
    tree, template = session.tree, renderer._template
    spans = {span.sampled.call: (index, span) for index, span in enumerate(tree.spans) if span.sampled}
    assert spans.keys() == {call.id for call in session.calls}
    assert len([span for span in tree.spans if span.sampled]) == len(spans)

    # Every recorded prompt is what the engine was given, and every completion what it gave.
    made = [(tuple(request.prompt_ids), tuple(ids)) for request, ids in backend.requests]
    for call in session.calls:
        index, span = spans[call.id]
        whole = tree.path(Position(index, len(span.ids)))
        prompt = tuple(whole[: len(whole) - len(span.ids)])
        assert (len(prompt), len(span.ids)) == (call.prompt_tokens, call.completion_tokens)
        assert any(prompt == asked and span.ids == ids[: len(span.ids)] for asked, ids in made)

    # A call that continued another without a fork goes on from its tokens, and in what the template writes, if that is
    # how the policy wrote its turn.
    for call in session.calls:
        if call.parent is None or call.fork_reason is not None:
            continue
        index, span = spans[call.id]
        before, turn = spans[call.parent]
        known = renderer.history_length(turn.ids)
        if known:
            assert _passes(tree, index, before)
        prompt = renderer.vocabulary.decode(tree.path(Position(index, len(span.ids)))[: call.prompt_tokens])
        written = template.text(call.request["messages"], call.request.get("tools"))
        if written.startswith(renderer.vocabulary.decode(tree.path(Position(before, known)))):
            assert prompt == written

    # Of two episodes that differ in reward, every sampled token that the agent had is trained once, and no other.
    twin, _, _ = _played(name, steps[:1], first=10**6)
    if session.calls and twin.calls:
        _trains_once(session, twin)
    session.close()


def _passes(tree: Any, span: int, ancestor: int) -> bool:
    while span > ancestor:
        span = tree.spans[span].parent
    return span == ancestor


def _trains_once(session: Session, twin: Session) -> None:
    episodes = [
        Episode(EpisodeKey("train", 0, 0, number), {}, "rewarded", float(number), calls=each.calls, tree=each.tree)
        for number, each in enumerate((twin, session))
    ]
    batch, _ = build_batch([Group(0, tuple(episodes))], grpo())
    had = {call.id for episode in episodes for call in delivered_calls(episode)}
    expected = [
        logprob
        for episode in episodes
        for span in episode.tree.spans
        if span.sampled and span.sampled.call in had
        for logprob in span.sampled.logprobs
    ]
    trained = batch.logprob.tolist()
    assert sorted(trained) == pytest.approx(sorted(expected))
