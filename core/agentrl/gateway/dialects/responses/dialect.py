"""The Responses API: ``POST /v1/responses``, and the responses that a session keeps.

A response is written from its request and from its output, so that a stored one costs no more than these.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import count
from typing import Any

from agentrl.errors import GatewayError
from agentrl.gateway.contract import Completion, Event, ModelRequest, Reply, Route, SessionSettings, WireRequest
from agentrl.gateway.dialects.responses.answer import Answer
from agentrl.gateway.dialects.responses.override import override_fields
from agentrl.gateway.dialects.responses.request import read_request
from agentrl.gateway.dialects.responses.schema import DESCRIPTION
from agentrl.gateway.dialects.responses.spoken import Spoken
from agentrl.gateway.dialects.responses.store import Store
from agentrl.gateway.dialects.writing import EVENT_STREAM, openai_refusal, server_event, written
from agentrl.gateway.streaming import delta_of

__all__ = ["Responses"]

_CREATE = Route("/responses")
_COUNT = Route("/responses/input_tokens")
_ONE = Route("/responses/{response}", ("GET", "DELETE"))
_ITEMS = Route("/responses/{response}/input_items", ("GET",))
_CANCEL = Route("/responses/{response}/cancel")

_DEFAULTS: Mapping[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
"""Fields of a request that its response repeats, with what they are where the request has none."""
_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}
"""What is called otherwise in the chat completions API."""
_PAGE = 20
_LARGEST_PAGE = 100


class Responses:
    """The dialect of the Responses API."""

    routes = (_CREATE, _COUNT, _ONE, _ITEMS, _CANCEL)

    def override(self, body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Apply ``rollout.override``; see ``Dialect.override``."""
        return override_fields(body, override)

    def parse(self, request: WireRequest) -> ModelRequest | Reply:
        """Read a request for a response, or answer one about a response that is kept; see ``Dialect.parse``."""
        store = Store(request.memory)
        if request.route is _CREATE:
            return read_request(request, store)
        if request.route is _COUNT:
            tokens = request.count(read_request(request, store))
            return _json({"object": "response.input_tokens", "input_tokens": tokens})
        name = request.parameters["response"]
        stored = store.get(name)
        if request.route is _CANCEL:
            raise GatewayError(
                f"Response {name} cannot be cancelled: it is not one that is made in the background",
                param="response_id",
                code="invalid_value",
                fix="close the connection of a response that is being made",
            )
        if request.route is _ITEMS:
            return _json(_page([item for items in store.asked(stored) for item in items], request.query))
        if request.method == "DELETE":
            store.delete(name)
            return _json({"id": name, "object": "response", "deleted": True})
        if request.query.get("stream", "false") != "false":
            raise GatewayError(
                f"Response {name} cannot be streamed again: it is not one that is made in the background",
                param="stream",
                code="unsupported_value",
                fix="retrieve it whole",
            )
        return _json(_response(stored.body, request.settings, stored.answer))

    def respond(self, request: WireRequest, asked: Sequence[ModelRequest], completions: Sequence[Completion]) -> Reply:
        """Write a response; see ``Dialect.respond``."""
        completion = completions[0]
        store = Store(request.memory)
        answer = Answer(asked[0], completion.handle, store.note)
        answer.add(delta_of(completion.call.message, tokens=completion.tokens if asked[0].logprobs else None))
        answer.end(completion)
        ended = _ended(_begun(request, asked[0]), answer, completion, store)
        return _json(_response(request.body, request.settings, ended))

    def stream(self, request: WireRequest, asked: Sequence[ModelRequest], events: AsyncIterator[Event]) -> Reply:
        """Write a response as server-sent events; see ``Dialect.stream``."""
        return Reply(200, _told(request, asked[0], events), EVENT_STREAM)

    def refuse(self, error: GatewayError) -> Reply:
        """Write an error; see ``Dialect.refuse``."""
        return openai_refusal(_named_here(error))

    def describe(self) -> Mapping[str, Any]:
        """Say what is served; see ``Described``."""
        return DESCRIPTION


def _named_here(error: GatewayError) -> GatewayError:
    """An error that names the field of this API, where the gateway has found fault with what it came to."""
    if error.param not in _NAMES:
        return error
    return GatewayError(
        error.message,
        status=error.status,
        code=error.code,
        param=_NAMES[error.param],
        fix=error.fix,
        retry_after=error.retry_after,
    )


def _json(value: object) -> Reply:
    return Reply(200, written(value))


async def _told(request: WireRequest, asked: ModelRequest, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    """The events of a response."""
    numbers = count()
    store = Store(request.memory)
    answer = Answer(asked, request.handle(asked.call_id), store.note)
    begun = _begun(request, asked)

    def wire(events: Sequence[Mapping[str, Any]]) -> bytes:
        return b"".join(
            server_event({**event, "sequence_number": number}, event["type"])
            for event, number in zip(events, numbers, strict=False)
        )

    def state(kind: str, answer: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": f"response.{kind}", "response": _response(request.body, request.settings, answer)}

    try:
        part = wire([state("created", begun), state("in_progress", begun)])
        async for event in events:
            if isinstance(event, Completion):
                told = answer.end(event)
                ended = _ended(begun, answer, event, store)
                yield part + wire([*told, state(ended["status"], ended)])
                return
            if part := part + wire(answer.add(event)):
                yield part
            part = b""
    except GatewayError as refusal:
        error = _named_here(refusal)
        failed = {**begun, "status": "failed", "error": {"code": "server_error", "message": str(error)}}
        what = {"code": error.code, "message": str(error), "param": error.param}
        yield wire([{"type": "error", **what}, state("failed", failed)])


def _begun(request: WireRequest, asked: ModelRequest) -> dict[str, Any]:
    """What the request does not tell of a response that has just begun."""
    return {
        "id": asked.call_id,
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": request.settings.model,
        "output": [],
        "usage": None,
    }


def _ended(begun: Mapping[str, Any], answer: Answer, completion: Completion, store: Store) -> dict[str, Any]:
    """What the request does not tell of a response that has ended; it is kept unless the request has it otherwise."""
    cut = completion.call.finish_reason == "length"
    ended = {
        **begun,
        "status": "incomplete" if cut else "completed",
        "completed_at": None if cut else int(time.time()),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "model": completion.model,
        "output": answer.output,
        "usage": _usage(completion),
    }
    if completion.call.request.get("store") is not False:
        store.keep(completion.call.id, completion.call.request, ended)
    return ended


def _response(body: Mapping[str, Any], settings: SessionSettings, answer: Mapping[str, Any]) -> dict[str, Any]:
    """A response, from the request's ``body`` and what that does not tell."""
    given = {name: body[name] for name in (*_DEFAULTS, "temperature") if body.get(name) is not None}
    return {"object": "response", "temperature": settings.temperature, **_DEFAULTS, **given, **answer}


def _usage(completion: Completion) -> dict[str, Any]:
    call = completion.call
    return {
        "input_tokens": call.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": call.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": _thought(completion)},
        "total_tokens": call.prompt_tokens + call.completion_tokens,
    }


def _thought(completion: Completion) -> int:
    """How many of the sampled tokens are thinking, the marks around it included."""
    thinking = completion.call.message.get("reasoning_content")
    if not thinking or not completion.tokens.ids:
        return 0
    spoken = Spoken()
    spoken.add(completion.tokens)
    spoken.take(thinking)
    return spoken.taken


def _page(items: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of a list, as ``order``, ``after`` and ``limit`` ask for it."""
    order, limit = query.get("order", "desc"), query.get("limit", str(_PAGE))
    if order not in ("asc", "desc"):
        raise GatewayError(f"order={order!r} is neither 'asc' nor 'desc'", param="order", code="invalid_value")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= _LARGEST_PAGE:
        raise GatewayError(
            f"limit={limit!r} is not a whole number from 1 to {_LARGEST_PAGE}", param="limit", code="invalid_value"
        )
    listed = list(items if order == "asc" else reversed(items))
    if "after" in query:
        names = [item["id"] for item in listed]
        if query["after"] not in names:
            raise GatewayError(f"after={query['after']!r} is no item of it", param="after", code="invalid_value")
        listed = listed[names.index(query["after"]) + 1 :]
    page = listed[: int(limit)]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return {"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": len(page) < len(listed)}
