"""A gateway in front of somebody else's endpoint: calls are passed on, and recorded without tokens."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from agentrl.errors import AgentRLError, BackendError
from agentrl.gateway.contract import Call
from agentrl.gateway.conversations import Turn, message_key, tools_key
from agentrl.gateway.dialects.relayed_chat import RelayedChat
from agentrl.gateway.request import Completion, ModelRequest
from agentrl.gateway.service import BODY_LIMIT, Gateway
from agentrl.gateway.session import Session
from agentrl.inference.contract import ChatBackend, ChatCompletion, ChatRequest
from agentrl.tokens.template import Message

__all__ = ["Relay", "RelayGateway"]


class RelayGateway(Gateway):
    """Sessions in front of a chat backend; for everybody who uses it a gateway like the other."""

    tries_again = True

    def __init__(self, backend: ChatBackend, *, body_limit: int = BODY_LIMIT) -> None:
        self._caller = Relay(backend)
        self._set_up(RelayedChat(), body_limit=body_limit)


class Relay:
    """Has requests completed by a chat backend and records them in their session."""

    def __init__(self, backend: ChatBackend) -> None:
        self.backend = backend

    async def complete(self, session: Session, request: ModelRequest, overridden: tuple[str, ...] = ()) -> Completion:
        """See ``Completes``."""
        began = time.monotonic()
        tools, messages = tools_key(request.tools), [_readable(message) for message in request.messages]
        keys = [message_key(message) for message in messages]
        with session.planned(tools, messages, keys) as plan:
            completion = await self._ask(session, request)
            call = Call(
                id=f"chatcmpl-{secrets.token_hex(12)}",
                parent=plan.match.turn.call if plan.match.turn else None,
                request=request.body,
                message=completion.message,
                finish_reason=completion.finish_reason,
                prompt_tokens=completion.prompt_tokens,
                completion_tokens=completion.completion_tokens,
                overridden=overridden,
                seconds=time.monotonic() - began,
            )
            answer = _readable({**completion.message, "role": "assistant"})
            session.record_relayed(call, tools, [*keys, message_key(answer)], _turn(call, answer))
        return Completion(call, session.settings.model, answer=completion.answer)

    async def _ask(self, session: Session, request: ModelRequest) -> ChatCompletion:
        settings, body = session.settings, request.body
        seed = body.get("seed")
        if isinstance(seed, int) and not isinstance(seed, bool):
            body = {**body, "seed": session.draws.mixed(seed)}
        try:
            return await self.backend.complete(ChatRequest(body, settings.temperature, settings.max_tokens))
        except AgentRLError:
            raise
        except Exception as error:  # The boundary to a plugin: whatever it raises is the backend's failure.
            raise BackendError(f"the inference backend failed: {type(error).__name__}: {error}") from error


def _turn(call: Call, message: Message) -> Turn:
    return Turn(
        call=call.id,
        digest=call.id.encode(),
        position=None,
        prompt_tokens=0,
        thinking=False,
        message=message,
        tool_call_ids=tuple(made["id"] for made in message["tool_calls"]),
    )


def _readable(message: Mapping[str, Any]) -> Message:
    """A message of any shape in that which conversations are told apart by: what is no text stands as its JSON."""
    calls = message.get("tool_calls")
    return {
        "role": _text(message.get("role")),
        "name": _text(message.get("name")) or None,
        "content": _text(message.get("content")),
        "reasoning_content": _text(message.get("reasoning_content") or message.get("reasoning")),
        "tool_calls": [_readable_call(call) for call in calls] if isinstance(calls, list) else [],
    }


def _readable_call(call: object) -> dict[str, Any]:
    given = call if isinstance(call, dict) else {}
    function = given.get("function")
    if not isinstance(function, dict):
        function = {"name": "", "arguments": call}
    return {
        "id": _text(given.get("id")),
        "function": {"name": _text(function.get("name")), "arguments": _text(function.get("arguments"))},
    }


def _text(value: object) -> str:
    if isinstance(value, list):
        return "".join(map(_part, value))
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, sort_keys=True)


def _part(part: object) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    return text if isinstance(text, str) else json.dumps(part, sort_keys=True)
