"""What the SDK raises, as errors that say whose fault it is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agentrl.errors import AgentRLError, BackendError, GatewayError, one_line
from agentrl.inference.openai.answers import field_of, message_of
from agentrl.inference.openai.endpoint import Endpoint

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

__all__ = ["explained", "is_about_the_model", "is_for_good", "reason"]

_RETRIED = frozenset({408, 409, 429})
_FOR_GOOD = frozenset({401, 402, 403})
"""Statuses with which an endpoint refuses whoever asks, whatever is asked."""
_SHOWN = 500
_KEY, _MODEL = "invalid_api_key", "model_not_found"
_REFUSED = r"(is |was |does |could )?(not (a )?valid|invalid|expired|not (be )?found|not exist)"
# Several endpoints refuse with a plain 400, whose text alone says what is wrong.
_OF_THE_KEY = re.compile(rf"(invalid|incorrect) api[ _-]?key|api[ _-]?key {_REFUSED}", re.IGNORECASE)
_OF_THE_MODEL = re.compile(rf"(invalid|unknown) model\b|\bmodel (\S+ )?{_REFUSED}|not a valid model", re.IGNORECASE)


def explained(error: APIError, endpoint: Endpoint) -> AgentRLError:
    """``GatewayError`` with the endpoint's status for what would be refused again, else ``BackendError``."""
    from openai import APIStatusError

    if not isinstance(error, APIStatusError):
        cause = one_line(error.__cause__ or error) or type(error.__cause__).__name__
        return BackendError(
            f"{endpoint.url} cannot be reached: {endpoint.without_key(cause)[:_SHOWN]}",
            fix="check inference.backend.url, and that the endpoint runs",
        )
    text = reason(error, endpoint)
    if error.status_code >= 500 or error.status_code in _RETRIED:
        return BackendError(f"{endpoint.url} answered {error.status_code}: {text}", fix=_patience(error.status_code))
    return _refusal(error, text, endpoint)


def reason(error: APIStatusError, endpoint: Endpoint) -> str:
    """What the endpoint says itself."""
    return endpoint.without_key(message_of(error.body) or f"HTTP {error.status_code}")[:_SHOWN]


def is_about_the_model(error: AgentRLError) -> bool:
    """Whether the endpoint has no such model, or is none."""
    return isinstance(error, GatewayError) and (error.status == 404 or error.code == _MODEL or error.param == "model")


def is_for_good(error: GatewayError) -> bool:
    """Whether the endpoint refuses whoever asks, whatever is asked."""
    return error.status in _FOR_GOOD or error.code == _KEY or is_about_the_model(error)


def _refusal(error: APIStatusError, text: str, endpoint: Endpoint) -> GatewayError:
    status, param = error.status_code, error.param or field_of(error.body)
    told_plainly = status == 400 and param in (None, "model")
    if status == 401 or (told_plainly and _OF_THE_KEY.search(text)):
        return GatewayError(_refused_key(text, endpoint), status=status, code=_KEY, fix=_key_fix(endpoint))
    code = error.code or "invalid_request_error"
    if told_plainly and _OF_THE_MODEL.search(text):
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


def _patience(status: int) -> str:
    if status == 429:
        return "lower rollout.concurrency, raise inference.backend.max_retries, or check the account's quota"
    return "see the endpoint's log, or raise inference.backend.max_retries"
