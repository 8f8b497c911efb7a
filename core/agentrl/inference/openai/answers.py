"""What an endpoint answers, checked as far as somebody relies on it."""

from __future__ import annotations

from typing import Any

from agentrl.errors import BackendError
from agentrl.inference.contract import ChatCompletion
from agentrl.inference.openai.endpoint import Endpoint

__all__ = ["field_of", "message_of", "read_answer", "read_models"]

_SHOWN = 400


def read_answer(response: Any, endpoint: Endpoint) -> ChatCompletion:
    """The completion in a response of the HTTP library. Raises ``BackendError`` for what is none."""
    try:
        body = response.json()
    except ValueError as error:
        raise _wrong(endpoint, "did not answer in JSON", response.text) from error
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or len(choices) != 1:
        raise _wrong(endpoint, "answered without a choice, or with several", message_of(body) or response.text)
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    if not isinstance(message, dict):
        raise _wrong(endpoint, "answered without a message", response.text)
    usage = body.get("usage")
    return ChatCompletion(
        answer=body,
        message=message,
        finish_reason=str(choices[0].get("finish_reason") or "stop"),
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def read_models(response: Any) -> list[str]:
    """The names in an answer to ``GET /models``; none where it is no list of models."""
    try:
        body = response.json()
    except ValueError:
        return []
    data = body.get("data") if isinstance(body, dict) else None
    listed = data if isinstance(data, list) else []
    return [model["id"] for model in listed if isinstance(model, dict) and isinstance(model.get("id"), str)]


def message_of(body: object) -> str:
    """What the body of an error says, in the shapes that servers give it; empty where it says nothing."""
    found = _innermost(body)
    if isinstance(found, list):
        return "; ".join(message_of(each) for each in found)
    if isinstance(found, dict) and "msg" in found:
        return f"{'.'.join(map(str, _place(found)))}: {found['msg']}"
    return str(found or "")


def field_of(body: object) -> str | None:
    """The request's field that the body of a FastAPI server's error is about, where it is one alone."""
    found = _innermost(body)
    places = [_place(each) for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    if len(places) != 1 or len(places[0]) < 2 or places[0][0] != "body":
        return None
    return str(places[0][1])


def _innermost(body: object) -> object:
    while True:
        if isinstance(body, list) and len(body) == 1 and isinstance(body[0], dict) and "msg" not in body[0]:
            body = body[0]  # As Gemini has it.
        elif isinstance(body, dict) and "msg" not in body:
            body = next((body[name] for name in ("error", "message", "detail") if body.get(name)), "")
        else:
            return body


def _place(fault: dict[str, Any]) -> list[Any]:
    """Where a fault is in the request, as pydantic says it: without the request itself, which it repeats."""
    place = fault.get("loc")
    return list(place) if isinstance(place, (list, tuple)) else []


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _wrong(endpoint: Endpoint, what: str, text: str) -> BackendError:
    return BackendError(
        f"{endpoint.url} {what}: {endpoint.without_key(text)!r:.{_SHOWN}}",
        fix="check that inference.backend.url is an endpoint of the chat completions API",
    )
