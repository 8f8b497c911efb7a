"""What the SDK raises, as errors that say whose fault it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl.errors import AgentRLError, BackendError, GatewayError, one_line
from agentrl.inference.openai.answers import message_of
from agentrl.inference.openai.endpoint import Endpoint

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

__all__ = ["explained", "is_about_the_model"]

_RETRIED = frozenset({408, 409, 429})
_SHOWN = 500


def explained(error: APIError, endpoint: Endpoint) -> AgentRLError:
    """``GatewayError`` with the endpoint's status for what would be refused again, else ``BackendError``."""
    from openai import APIStatusError

    if not isinstance(error, APIStatusError):
        reason = one_line(error.__cause__ or error) or type(error.__cause__).__name__
        return BackendError(
            f"{endpoint.url} cannot be reached: {endpoint.without_key(reason)[:_SHOWN]}",
            fix="check inference.backend.url, and that the endpoint runs",
        )
    text = endpoint.without_key(message_of(error.body) or f"HTTP {error.status_code}")[:_SHOWN]
    if error.status_code >= 500 or error.status_code in _RETRIED:
        return BackendError(f"{endpoint.url} answered {error.status_code}: {text}", fix=_patience(error.status_code))
    return _refusal(error, text, endpoint)


def is_about_the_model(error: GatewayError) -> bool:
    """Whether the endpoint has no such model, or is none."""
    return error.status == 404 or error.code == "model_not_found" or error.param == "model"


def _refusal(error: APIStatusError, text: str, endpoint: Endpoint) -> GatewayError:
    if error.status_code == 401:
        return GatewayError(_refused_key(text, endpoint), status=401, code="invalid_api_key", fix=_key_fix(endpoint))
    code = error.code or "invalid_request_error"
    return GatewayError(text, status=error.status_code, code=code, param=error.param)


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
