"""What an endpoint answers, checked as far as somebody relies on it."""

from __future__ import annotations

from typing import Any

from agentrl.errors import BackendError
from agentrl.inference.contract import ChatCompletion
from agentrl.inference.openai.endpoint import Endpoint

__all__ = ["message_of", "read_answer", "read_models"]

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
    while isinstance(body, dict):
        body = next((body[name] for name in ("error", "message", "detail") if body.get(name)), "")
    return str(body or "")


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _wrong(endpoint: Endpoint, what: str, text: str) -> BackendError:
    return BackendError(
        f"{endpoint.url} {what}: {endpoint.without_key(text)!r:.{_SHOWN}}",
        fix="check that inference.backend.url is an endpoint of the chat completions API",
    )
