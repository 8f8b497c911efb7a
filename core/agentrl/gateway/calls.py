"""One call: from a checked request to a recorded completion."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from agentrl.errors import BackendError, GatewayError
from agentrl.gateway.completing import generate
from agentrl.gateway.contract import Call
from agentrl.gateway.conversations import MessageKey, Turn, message_key, tools_key
from agentrl.gateway.draws import Draw
from agentrl.gateway.record import Plan, Record
from agentrl.gateway.request import Completion, ModelRequest
from agentrl.gateway.sampling import resolve_sampling
from agentrl.gateway.session import Session
from agentrl.inference.contract import Backend, Capabilities, Chunk, GenerationRequest, Sampling, completion_fault
from agentrl.tokens.contract import Sampled
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.template import Message, thinking_of

__all__ = ["Caller"]

_CONTRACT = (
    "mend the backend's generate and update_weights, or use another inference.backend; agentrl doctor and "
    "agentrl.testing.BackendConformance show what is asked of it"
)
_OPENING_ROLES = frozenset({"system", "developer", "user"})
_REMEMBERED_OPENINGS = 256


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The ids to complete, and how they came about."""

    ids: list[int]
    extends: bool
    thinking: bool
    fork_reason: str | None


class Caller:
    """Completes requests with a backend and records them in their session."""

    def __init__(
        self, backend: Backend, capabilities: Capabilities, renderer: Renderer, vocabulary: int | None = None
    ) -> None:
        """``vocabulary`` is how many ids the model knows, where that is known."""
        self.backend = backend
        self.capabilities = capabilities
        self.renderer = renderer
        self._vocabulary = vocabulary
        self._openings = lru_cache(_REMEMBERED_OPENINGS)(self._opening)

    async def complete(self, session: Session, request: ModelRequest, overridden: tuple[str, ...] = ()) -> Completion:
        """See ``Completes``: sample one completion."""
        began = time.monotonic()
        self.renderer.check(request.messages, request.tools, calls_tools=request.calls_tools)
        tools, keys = tools_key(request.tools), [message_key(message) for message in request.messages]
        with session.planned(tools, request.messages, keys) as plan:
            prompt = self._prompt(plan, request, tools, keys)
            with session.draws.numbered(prompt.ids, _canonical(request.fields)) as draw:
                sampling = self._sampling(session, request, len(prompt.ids), draw)
                chunk = await self._generate(
                    GenerationRequest(prompt.ids, sampling, session=session.id), session.settings.versions
                )
                message, shown = self._read(chunk, request, prompt.ids, draw.call)
                call = Call(
                    id=f"chatcmpl-{secrets.token_hex(12)}",
                    parent=plan.match.turn.call if plan.match.turn else None,
                    request=request.body,
                    message=message,
                    finish_reason=_finish_reason(chunk, message),
                    prompt_tokens=len(prompt.ids),
                    completion_tokens=len(chunk.ids),
                    fork_reason=prompt.fork_reason,
                    overridden=overridden,
                    unmet=request.unmet,
                    control_tokens=self._control_tokens(plan, request),
                    seconds=time.monotonic() - began,
                )
                record = Record(
                    call=call,
                    sampled=Sampled(call.id, chunk.logprobs, chunk.versions, sampling.temperature or 1.0),
                    prompt_ids=prompt.ids,
                    completion_ids=chunk.ids,
                    shown=shown,
                    extends=prompt.extends,
                    thinking=prompt.thinking or self.renderer.thinks(chunk.ids, prompt.ids),
                    digest=draw.call,
                    tools=tools,
                    keys=[*keys, message_key(message)],
                    spelled=self._spelled(message, chunk),
                )
                session.record(plan, record)
        return Completion(call, session.settings.model, chunk.ids, chunk.logprobs, chunk.top_logprobs)

    def _prompt(self, plan: Plan, request: ModelRequest, tools: str, keys: list[MessageKey]) -> _Prompt:
        """The matched turn's own ids, extended by what is new; where they cannot be, all of it rendered."""
        turn, reason = plan.match.turn, plan.match.fork_reason
        if turn is not None and reason is None:
            extended = self._extended(plan, turn, request)
            if not isinstance(extended, str):
                return _Prompt(extended, True, turn.thinking, None)
            reason = extended
        if all(message["role"] in _OPENING_ROLES for message in request.messages):
            return _Prompt(list(self._openings(tools, *keys)), False, False, reason)
        if self.renderer.abilities.drops_text(request.messages):
            reason = "text beside tool calls dropped by the template"
        ids = self.renderer.render(*self.renderer.marked(request.messages, request.tools, plan.spelled))
        thinking = any(map(thinking_of, request.messages)) and self.renderer.thinks(ids)
        return _Prompt(ids, False, thinking, reason)

    def _extended(self, plan: Plan, turn: Turn, request: ModelRequest) -> list[int] | str:
        if turn.position is None:
            return "a stop string cut the turn inside a token"
        if turn.thinking and not any(message["role"] == "user" for message in request.messages):
            return "thinking without a question"  # Templates tell by the last question what thinking they keep.
        new = request.messages[plan.match.messages :]
        marked, tools = self.renderer.marked(new, request.tools, plan.spelled[plan.match.messages :])
        return self.renderer.extend(plan.prompt, plan.completion, marked, tools, thinking=turn.thinking)

    def _control_tokens(self, plan: Plan, request: ModelRequest) -> tuple[str, ...]:
        """Those that the texts that are new in a request spell out, where the model reads them as such."""
        return () if self.renderer.plain_text else self.renderer.control.given(request.messages[plan.match.messages :])

    def _spelled(self, message: Message, chunk: Chunk) -> frozenset[str]:
        return self.renderer.control.spelled(message, chunk.ids, self.renderer.vocabulary.decode)

    def _opening(self, tools: str, *keys: MessageKey) -> tuple[int, ...]:
        """The prompt of a conversation in which nobody has answered yet; the episodes of a group share it."""
        messages: list[Message] = []
        for role, name, text in keys:
            messages.append({"role": role, "content": text} | ({} if name is None else {"name": name}))
        return tuple(self.renderer.render(*self.renderer.marked(messages, json.loads(tools) if tools else None)))

    def _sampling(self, session: Session, request: ModelRequest, prompt_tokens: int, draw: Draw) -> Sampling:
        room = self.capabilities.context_length - prompt_tokens
        if room < 1:
            raise GatewayError(
                f"the messages come to {prompt_tokens} tokens, which leaves no room in the context of "
                f"{self.capabilities.context_length}",
                code="context_length_exceeded",
                param="messages",
                fix="shorten the history, or use a model with a longer context",
            )
        ends = self.renderer.stop_ids
        if request.one_call:
            if self.renderer.tool_end_id is None:
                raise GatewayError(
                    "parallel_tool_calls=false cannot be kept with this model: no token ends its tool calls",
                    param="parallel_tool_calls",
                    code="unsupported_value",
                    fix="drop it from the request, or set rollout.override: {parallel_tool_calls: null}",
                )
            ends = ends | {self.renderer.tool_end_id}
        # A seed of the request's own repeats as it says, within its episode: it is in the digest that equal requests
        # share. Taken as it is, it would make the episodes of a group one and the same.
        digest = draw.call if request.fields.get("seed") is None else draw.request
        seed = int.from_bytes(digest[:8]) >> 1
        return resolve_sampling(request, session.settings, self.capabilities, room=room, seed=seed, stop_ids=ends)

    async def _generate(self, request: GenerationRequest, versions: tuple[int, int] | None) -> Chunk:
        """The whole completion as one chunk, of tokens that could be what the backend says of them."""
        whole = await generate(self.backend, request)
        if wrong := completion_fault(whole, vocabulary=self._vocabulary, versions=versions):
            raise BackendError(f"the inference backend broke its contract: {wrong}", fix=_CONTRACT)
        return whole

    def _read(
        self, chunk: Chunk, request: ModelRequest, prompt_ids: list[int], digest: bytes
    ) -> tuple[Message, int | None]:
        """The message of a completion, and how many of its tokens that shows; ``None`` where a stop
        string cuts one in two."""
        ids: list[int] = list(chunk.ids)
        shown: int | None = self.renderer.shown(ids)
        cut = self._before_stop(ids, chunk.stop_string) if chunk.stop_string else None
        if cut is not None:
            ids, shown = cut
        tools = request.tools if request.calls_tools else None
        message = self.renderer.parse(ids, tools, prompt_ids, call_ids=f"call_{digest.hex()[:24]}_")
        return message, shown

    def _before_stop(self, ids: list[int], stop: str) -> tuple[list[int], int | None] | None:
        """Ids of the text before ``stop``, and how many of ``ids`` they are if they are any."""
        vocabulary = self.renderer.vocabulary
        before, found, _ = vocabulary.decode(ids).partition(stop)
        if not found:
            return None
        count = len(ids)
        while count and len(vocabulary.decode(ids[:count])) > len(before):
            count -= 1
        if vocabulary.decode(ids[:count]) == before:
            return ids[:count], count
        return vocabulary.encode(before), None


def _canonical(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True) if fields else ""


def _finish_reason(chunk: Chunk, message: Message) -> str:
    return "tool_calls" if chunk.finish == "stop" and message.get("tool_calls") else str(chunk.finish)
