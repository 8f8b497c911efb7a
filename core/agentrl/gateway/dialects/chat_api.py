"""What is common to the ways in which the chat completions API is read here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentrl.errors import GatewayError, shown

__all__ = ["ALIASES", "PATH", "error_body", "flag", "refuse_several", "refused"]

PATH = "/chat/completions"
ALIASES: Mapping[str, str] = {"max_completion_tokens": "max_tokens"}


def flag(given: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false, the latter where it is not given. Raises ``GatewayError`` for any other value."""
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise refused(name, given, "is neither true nor false")
    return value


def refuse_several(given: Mapping[str, Any]) -> None:
    """Raises ``GatewayError`` for a request whose answer would be a stream, or several completions."""
    if flag(given, "stream"):
        raise refused("stream", given, "is not supported yet", fix="have the agent ask without stream")
    if given.get("n", 1) != 1:
        fix = "send that many requests, each is sampled anew, or have one answer with rollout.override: {n: null}"
        raise refused("n", given, "is not supported", fix=fix)


def refused(name: str, given: Mapping[str, Any], what: str, *, fix: str | None = None) -> GatewayError:
    """The error for a field whose value cannot be."""
    return GatewayError(f"{name}={shown(given[name], 80)} {what}", param=name, code="unsupported_value", fix=fix)


def error_body(error: GatewayError) -> bytes:
    """An error as the API reports it."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    fields = {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    return json.dumps({"error": fields}).encode()
