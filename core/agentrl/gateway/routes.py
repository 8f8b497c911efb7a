"""Which requests there are: paths below a session's base URL, and the methods that each takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agentrl.errors import GatewayError
from agentrl.gateway.credentials import redact
from agentrl.gateway.dialects.contract import Dialect
from agentrl.gateway.exchange import Exchange, Reply

__all__ = ["Address", "Models", "Routes", "address_of", "wrong_method"]

_PATH = re.compile(r"(?:/(?P<capture>capture-[^/]*))?(?:.*/v1)?(?P<route>/.*)")
_SLASHES = re.compile("/{2,}")
_MODELS = "/models"


@dataclass(frozen=True, slots=True)
class Address:
    """A request's path, taken apart."""

    route: str
    """What is below ``/v1``, without a slash at its end: clients join URLs with one too many."""
    capture: str | None
    """The capture token before it."""


def address_of(path: str) -> Address:
    """A path as it is written, taken apart."""
    match = _PATH.fullmatch(_SLASHES.sub("/", path))
    if match is None:
        return Address(path, None)
    return Address(match["route"].rstrip("/"), match["capture"])


@dataclass(frozen=True, slots=True)
class Models:
    """The route of the models: a list of the one that there is, or any by its name, since any name is the policy."""

    name: str | None = None

    def reply(self, policy: str) -> Reply:
        """The policy under the name that was asked for, or under its own in a list."""
        if self.name is not None:
            return Reply(200, json.dumps(_model(self.name)).encode())
        return Reply(200, json.dumps({"object": "list", "data": [_model(policy)]}).encode())


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "agentrl"}


class Routes:
    """What is served."""

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        self.dialects: Mapping[str, Dialect] = {dialect.path: dialect for dialect in dialects}

    def find(self, route: str, exchange: Exchange) -> tuple[Dialect | Models, tuple[str, ...]]:
        """What a request is for, and the methods that may be used on it. Raises ``GatewayError`` (404) where there is
        nothing."""
        if (dialect := self.dialects.get(route)) is not None:
            return dialect, ("POST", "OPTIONS")
        if route == _MODELS or route.startswith(f"{_MODELS}/"):
            return Models(route.removeprefix(_MODELS).removeprefix("/") or None), ("GET", "HEAD", "OPTIONS")
        known = ", ".join(f"POST /v1{path}" for path in self.dialects)
        raise GatewayError(
            f"{exchange.method} {redact(exchange.path)} does not exist here",
            status=404,
            code="unknown_url",
            fix=f"there are {known}, GET /v1/models and GET /v1/models/NAME",
        )


def wrong_method(exchange: Exchange, methods: Iterable[str]) -> GatewayError:
    """What a client is told whose method a path does not take."""
    return GatewayError(
        f"{redact(exchange.path)} takes no {exchange.method}",
        status=405,
        code="method_not_allowed",
        fix=f"use {' or '.join(method for method in methods if method != 'OPTIONS')}",
    )
