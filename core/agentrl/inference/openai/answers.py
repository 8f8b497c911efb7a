"""The answers of an endpoint: completions, lists of models, and failures as errors that say whose fault they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from agentrl.errors import AgentRLError, BackendError, GatewayError, one_line
from agentrl.gateway.contract import CONTEXT_EXCEEDED
from agentrl.inference.contract import ChatCompletion
from agentrl.inference.openai.endpoint import Endpoint

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

__all__ = ["endpoint_error", "is_about_the_model", "is_for_good", "read_answer", "read_models", "reason"]

_SHOWN = 500
"""How many characters of an answer a message shows."""
_RETRIED = frozenset({408, 409, 429})
_FOR_GOOD = frozenset({401, 402, 403})
"""Statuses with which an endpoint refuses every call of an account."""
_KEY, _MODEL = "invalid_api_key", "model_not_found"
_REFUSED = r"(is |was |does |could )?(not (a )?valid|invalid|expired|not (be )?found|not exist)"
# Several endpoints refuse with a plain 400, and only its text says what is wrong.
_ABOUT_THE_KEY = re.compile(rf"(invalid|incorrect) api[ _-]?key|api[ _-]?key {_REFUSED}", re.IGNORECASE)
_ABOUT_THE_MODEL = re.compile(rf"(invalid|unknown) model\b|\bmodel (\S+ )?{_REFUSED}|not a valid model", re.IGNORECASE)

_ABOUT_THE_CONTEXT = re.compile(r"\b(context|model) (length|window|size)\b", re.IGNORECASE)
"""Servers other than OpenAI's own say in words alone that a prompt is too long."""


def read_answer(response: Any, endpoint: Endpoint) -> ChatCompletion:
    """Returns the completion in a response of the HTTP library. Raises ``BackendError`` where it holds none."""
    try:
        body = response.json()
    except ValueError as error:
        raise _wrong(endpoint, "did not answer in JSON", response.text) from error
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or len(choices) != 1:
        raise _wrong(endpoint, "answered without a choice, or with several", _message_of(body) or response.text)
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
    """Returns the model names in an answer to ``GET /models``; none where it is not a list of models."""
    try:
        body = response.json()
    except ValueError:
        return []
    data = body.get("data") if isinstance(body, dict) else None
    listed = data if isinstance(data, list) else []
    return [model["id"] for model in listed if isinstance(model, dict) and isinstance(model.get("id"), str)]


def _message_of(body: object) -> str:
    """The message in the body of an error, in any shape that servers use; empty where there is none."""
    found = _innermost(body)
    if isinstance(found, list):
        return "; ".join(_message_of(each) for each in found)
    if isinstance(found, dict) and "msg" in found:
        return f"{'.'.join(map(str, _location(found)))}: {found['msg']}"
    return str(found or "")


def _field_of(body: object) -> str | None:
    """The request's field that the error of a FastAPI server is about, where it is about one only."""
    found = _innermost(body)
    faults = [_location(each) for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    if len(faults) != 1 or len(faults[0]) < 2 or faults[0][0] != "body":
        return None
    return str(faults[0][1])


def _innermost(body: object) -> object:
    while True:
        if isinstance(body, list) and len(body) == 1 and isinstance(body[0], dict) and "msg" not in body[0]:
            body = body[0]  # The shape of Gemini's errors.
        elif isinstance(body, dict) and "msg" not in body:
            body = next((body[name] for name in ("error", "message", "detail") if body.get(name)), "")
        else:
            return body


def _location(fault: dict[str, Any]) -> list[Any]:
    """The path of a fault in the request, as pydantic reports it."""
    location = fault.get("loc")
    return list(location) if isinstance(location, (list, tuple)) else []


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _wrong(endpoint: Endpoint, what: str, text: str) -> BackendError:
    return BackendError(
        f"{endpoint.url} {what}: {endpoint.without_key(text)!r:.{_SHOWN}}",
        fix="check that inference.backend.url is an endpoint of the chat completions API",
    )


def endpoint_error(error: APIError, endpoint: Endpoint) -> AgentRLError:
    """Returns the error for what the SDK raised.

    A ``GatewayError`` with the endpoint's status where the call would be refused again, else a ``BackendError``.
    """
    from openai import APIStatusError

    if not isinstance(error, APIStatusError):
        detail = one_line(error.__cause__ or error) or type(error.__cause__).__name__
        return BackendError(
            f"{endpoint.url} cannot be reached: {endpoint.without_key(detail)[:_SHOWN]}",
            fix="check inference.backend.url, and that the endpoint runs",
        )
    text = reason(error, endpoint)
    if error.status_code >= 500 or error.status_code in _RETRIED:
        return BackendError(f"{endpoint.url} answered {error.status_code}: {text}", fix=_retry_fix(error.status_code))
    return _refusal(error, text, endpoint)


def reason(error: APIStatusError, endpoint: Endpoint) -> str:
    """Returns the endpoint's own message, without the key and shortened."""
    return endpoint.without_key(_message_of(error.body) or f"HTTP {error.status_code}")[:_SHOWN]


def is_about_the_model(error: AgentRLError) -> bool:
    """Returns whether the endpoint does not know the model, or is not an endpoint of this API."""
    return isinstance(error, GatewayError) and (error.status == 404 or error.code == _MODEL or error.param == "model")


def is_for_good(error: GatewayError) -> bool:
    """Returns whether the endpoint would refuse any call: for the key, the account or the model."""
    return error.status in _FOR_GOOD or error.code == _KEY or is_about_the_model(error)


def _refusal(error: APIStatusError, text: str, endpoint: Endpoint) -> GatewayError:
    status, param = error.status_code, error.param or _field_of(error.body)
    told_plainly = status == 400 and param in (None, "model")
    if status == 401 or (told_plainly and _ABOUT_THE_KEY.search(text)):
        return GatewayError(_refused_key(text, endpoint), status=status, code=_KEY, fix=_key_fix(endpoint))
    code = error.code or "invalid_request_error"
    if status == 400 and _ABOUT_THE_CONTEXT.search(text):
        code = CONTEXT_EXCEEDED
    if told_plainly and _ABOUT_THE_MODEL.search(text):
        code = _MODEL
    message = f"{endpoint.url} answered {status}: {text}"
    return GatewayError(message, status=status, code=str(code), param=param, fix=_account_fix(status, endpoint))


def _account_fix(status: int, endpoint: Endpoint) -> str | None:
    whose = f"the account of the key in {endpoint.variable}" if endpoint.variable else "whoever asks without a key"
    if status == 402:
        return f"see what {whose} has left to spend"
    if status == 403:
        return f"see whether {whose} may use model {endpoint.model!r}, and from here"
    return None


def _refused_key(text: str, endpoint: Endpoint) -> str:
    key = f"the key in {endpoint.variable}" if endpoint.variable else "a call without a key"
    return f"{endpoint.url} refuses {key}: {text}"


def _key_fix(endpoint: Endpoint) -> str:
    if endpoint.variable:
        return f"set {endpoint.variable} to a key of that endpoint, or name another in inference.backend.api_key_env"
    return "name the environment variable that holds its key in inference.backend.api_key_env"


def _retry_fix(status: int) -> str:
    if status == 429:
        return "lower rollout.concurrency, raise inference.backend.max_retries, or check the account's quota"
    return "see the endpoint's log, or raise inference.backend.max_retries"
