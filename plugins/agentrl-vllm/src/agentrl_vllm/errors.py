"""What a server's answer that is no completion means."""

from __future__ import annotations

import json
from http import HTTPStatus

from agentrl.errors import BackendError, PromptTooLong, UnsupportedSampling, one_line

__all__ = ["ServerFailed", "ServerHangs", "refusal"]

_TOO_LONG = "maximum model length"
_SAMPLING = frozenset({"temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids", "logprobs", "max_tokens"})


class ServerFailed(BackendError):
    """A server is gone, or failed at what another one may be able to do."""


class ServerHangs(ServerFailed):
    """A server took a request, and is silent for longer than it may be."""


def refusal(url: str, path: str, status: int, body: bytes) -> BackendError:
    """The error that the answer ``status`` with ``body`` to a request for ``path`` stands for."""
    message, parameter = _read(body)
    if _TOO_LONG in message:
        return PromptTooLong(message, fix="shorten the prompt, or use a model with a longer context")
    if status == HTTPStatus.BAD_REQUEST and parameter in _SAMPLING:
        return UnsupportedSampling(f"the server at {url} does not sample so: {message}")
    told = f"the server at {url} answered {path} with {status}: {message or 'nothing more'}"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ServerFailed(told)
    return BackendError(told, fix=_fix(status))


def _fix(status: int) -> str | None:
    if status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
        return "start it with --enable-scale-out and VLLM_SERVER_DEV_MODE=1"
    return None


def _read(body: bytes) -> tuple[str, str | None]:
    """The message of an answer, and the request's field that it is about."""
    try:
        answer = json.loads(body)
        error = answer.get("error", answer.get("detail", "")) if isinstance(answer, dict) else answer
    except ValueError:
        return one_line(body.decode(errors="replace"))[:500], None
    if isinstance(error, dict):
        return one_line(error.get("message", ""))[:500], error.get("param")
    return one_line(error)[:500], None
