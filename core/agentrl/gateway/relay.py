"""The completer of an endpoint elsewhere: requests are passed on to a chat backend, and recorded without tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from agentrl.errors import AgentRLError, BackendError, GatewayError
from agentrl.gateway.contract import Call, Completion, Delta, ModelRequest
from agentrl.gateway.conversations import Turn, message_key, tools_key
from agentrl.gateway.session import Session
from agentrl.gateway.streaming import delta_of
from agentrl.inference.contract import ChatBackend, ChatCompletion, ChatRequest, Grammar
from agentrl.tokens.template import Message

__all__ = ["RelayCompleter"]


class RelayCompleter:
    """Has requests completed by a chat backend and records them in their session."""

    relays = True
    context_length = None

    def __init__(self, backend: ChatBackend) -> None:
        self.backend = backend

    async def complete(
        self,
        session: Session,
        request: ModelRequest,
        overridden: tuple[str, ...] = (),
        tell: Callable[[Delta], None] | None = None,
    ) -> Completion:
        """Pass a request on and record the answer, which is told whole; see ``Completer.complete``."""
        began = time.monotonic()
        tools, messages = tools_key(request.tools), [_readable(message) for message in request.messages]
        continues = session.continuation(tools, messages)
        try:
            completion = await self._ask(session, request)
            call = Call(
                id=request.call_id,
                parent=continues.match.turn.call if continues.match.turn else None,
                request=session.keep(request.body),
                message=completion.message,
                finish_reason=completion.finish_reason,
                prompt_tokens=completion.prompt_tokens,
                completion_tokens=completion.completion_tokens,
                overridden=overridden,
                unmet=(*request.unmet, *(name for name in request.preferences if name not in _LEVELS)),
                normalised=request.normalised,
                seconds=time.monotonic() - began,
                started=request.arrived - session.opened,
            )
            answer = _readable({**completion.message, "role": "assistant"})
            turn = Turn(
                call=call.id,
                digest=call.id.encode(),
                prompt_tokens=0,
                thinking=False,
                message=answer,
                tool_call_ids=tuple(made["id"] for made in answer["tool_calls"]),
            )
            session.record(call, turn, message_key(answer), continues)
        except BaseException:
            session.abandon(continues)
            raise
        if tell is not None:
            tell(replace(delta_of(answer), prompt_tokens=call.prompt_tokens))
        handle = session.handle(call.id) if answer["reasoning_content"] else ""
        return Completion(call, session.settings.model, answer=completion.answer, handle=handle)

    def count(self, session: Session, request: ModelRequest) -> int:
        """Refuse: the endpoint's tokens are not known here."""
        raise GatewayError(
            "the tokens of an endpoint's model cannot be counted here",
            code="unsupported_value",
            fix="estimate them in the agent, or evaluate a model whose tokenizer is here",
        )

    async def _ask(self, session: Session, request: ModelRequest) -> ChatCompletion:
        settings, body = session.settings, _chat_body(request)
        seed = body.get("seed")
        if isinstance(seed, int) and not isinstance(seed, bool):
            body = {**body, "seed": session.draws.mixed(seed)}
        try:
            return await self.backend.complete(ChatRequest(body, settings.temperature, settings.max_tokens))
        except AgentRLError:
            raise
        except Exception as error:  # The boundary to a plugin.
            raise BackendError(f"the inference backend failed: {type(error).__name__}: {error}") from error


_LEVELS = ("reasoning_effort", "verbosity")
"""The preferences that are fields of the chat completions API."""


def _chat_body(request: ModelRequest) -> Mapping[str, Any]:
    """A request to the chat completions API: as it came in, or made of what a dialect has read."""
    if request.relay is not None:
        return request.relay
    levels = {name: request.preferences[name] for name in _LEVELS if name in request.preferences}
    body: dict[str, Any] = {"messages": request.messages, **request.fields, **levels}
    if request.tools:
        body |= {"tools": request.tools, "tool_choice": "auto" if request.calls_tools else "none"}
        body |= {"parallel_tool_calls": False} if request.one_call else {}
        body |= {"tool_choice": _choice(request)} if request.must_call else {}
    if request.grammar is not None:
        body["response_format"] = _response_format(request.grammar)
    if request.logprobs:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.template_kwargs:
        body["chat_template_kwargs"] = request.template_kwargs
    return body


def _choice(request: ModelRequest) -> str | dict[str, Any]:
    """``ModelRequest.must_call`` as the field ``tool_choice``."""
    named = [{"type": "function", "function": {"name": name}} for name in request.must_call]
    if len(named) == 1:
        return named[0]
    if len(named) == len(request.tools or ()):
        return "required"
    return {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}


def _response_format(grammar: Grammar) -> dict[str, Any]:
    if grammar.kind == "json_object":
        return {"type": "json_object"}
    if grammar.kind == "json_schema":
        schema = {"name": "answer", "schema": json.loads(grammar.text), "strict": True}
        return {"type": "json_schema", "json_schema": schema}
    raise GatewayError(
        f"an endpoint of the chat completions API keeps to no {grammar.kind}",
        param="response_format",
        code="unsupported_value",
        fix="ask for a JSON schema, or evaluate a model that runs here",
    )


def _readable(message: Mapping[str, Any]) -> Message:
    """A message of any shape in the one that conversations are compared in: what is not text becomes its JSON."""
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
