"""Which dialect or resource serves a path, and what a path is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

from agentrl.errors import ConfigError, GatewayError
from agentrl.gateway.contract import Dialect, Exchange, Route
from agentrl.gateway.resource import Resource
from agentrl.redaction import redact

__all__ = ["Routes", "methods_of", "parameters_of", "shown_path", "split_path", "wrong_method"]

_PATH = re.compile(r"(?:/(?P<capture>capture-[^/]*))?(?:.*/v1)?(?P<route>/.*)")
_SLASHES = re.compile("/{2,}")
_PARAMETER = re.compile(r"{(\w+)(:path)?}")


def split_path(path: str) -> tuple[str | None, str]:
    """Take a URL's path apart: the capture token in it, if any, and what is below the base URL.

    Clients join URLs with one slash too many; those are removed. The latter part begins with a slash, or is empty.
    """
    match = _PATH.fullmatch(_SLASHES.sub("/", path) if "//" in path else path)
    return (None, path) if match is None else (match["capture"], match["route"].rstrip("/"))


Owner = Dialect | Resource
"""Who serves a route."""


class Routes:
    """Who serves a path."""

    def __init__(self, dialects: Sequence[Dialect], resources: Sequence[Resource] = ()) -> None:
        """Raises ``ConfigError`` where there is no dialect, or where two serve the same path."""
        if not dialects:
            raise ConfigError(
                "the gateway has no wire protocol to serve: every dialect is disabled or broken",
                fix="enable one: `agentrl list-dialects` shows them",
            )
        self.default = dialects[0]
        self._exact: dict[str, tuple[Owner, Route, Mapping[str, str]]] = {}
        self._patterns: list[tuple[re.Pattern[str], Owner, Route]] = []
        self._owners: tuple[Owner, ...] = (*resources, *dialects)
        claims: dict[str, Owner] = {}
        for each in self._owners:
            for route in each.routes:
                owner = claims.setdefault(_PARAMETER.sub("{}", route.path), each)
                if owner is not each:
                    raise ConfigError(
                        f"the route {route.path} is served by two dialects, {_name(owner)} and {_name(each)}",
                        fix="disable the plugin of one of them: -p no:NAME",
                    )
                if _PARAMETER.search(route.path):
                    self._patterns.append((_pattern(route.path), each, route))
                else:
                    self._exact[route.path] = (each, route, {})
        self._served = [route for dialect in dialects for route in dialect.routes]

    @property
    def owners(self) -> tuple[Owner, ...]:
        """All that is served, resources before dialects."""
        return self._owners

    def find(self, path: str) -> tuple[Owner | None, Route | None, Mapping[str, str]]:
        """The owner and the route that serve ``path``, with the values of the route's parameters."""
        if (found := self._exact.get(path)) is not None:
            return found
        for pattern, owner, route in self._patterns:
            if (match := pattern.fullmatch(path)) is not None:
                return owner, route, match.groupdict()
        return None, None, {}

    def unknown(self, exchange: Exchange) -> GatewayError:
        """The error (404) for a path that no dialect serves."""
        known = [f"{method} /v1{_capitals(route)}" for route in self._served for method in route.methods]
        return GatewayError(
            f"{exchange.method} {redact(exchange.path)} does not exist here",
            status=404,
            code="unknown_url",
            fix=f"there are {', '.join(known[:-1])} and {known[-1]}" if len(known) > 1 else f"there is {known[0]}",
        )


def _pattern(path: str) -> re.Pattern[str]:
    """What matches the paths of a route with parameters, each as a group of its name."""
    parts, end = [], 0
    for parameter in _PARAMETER.finditer(path):
        parts.append(re.escape(path[end : parameter.start()]))
        parts.append(f"(?P<{parameter[1]}>{'.+' if parameter[2] else '[^/]+'})")
        end = parameter.end()
    return re.compile("".join([*parts, re.escape(path[end:])]))


def _capitals(route: Route) -> str:
    return _PARAMETER.sub(lambda parameter: parameter[1].upper(), route.path)


def shown_path(route: Route) -> str:
    """The path of a route as OpenAPI writes it: every parameter is ``{name}``."""
    return _PARAMETER.sub(lambda parameter: f"{{{parameter[1]}}}", route.path)


def parameters_of(route: Route) -> dict[str, bool]:
    """The names of a route's parameters, and whether each takes more than one segment."""
    return {parameter[1]: bool(parameter[2]) for parameter in _PARAMETER.finditer(route.path)}


def _name(owner: Owner) -> str:
    return f"{type(owner).__module__}:{type(owner).__qualname__}"


@cache
def methods_of(route: Route) -> tuple[str, ...]:
    """The methods that a route takes, those included that come by themselves."""
    head = ("HEAD",) if "GET" in route.methods else ()
    return (*route.methods, *head, "OPTIONS")


def wrong_method(exchange: Exchange, methods: Sequence[str]) -> GatewayError:
    """The error (405) for a method that a path does not take."""
    return GatewayError(
        f"{redact(exchange.path)} takes no {exchange.method}",
        status=405,
        code="method_not_allowed",
        fix=f"use {' or '.join(method for method in methods if method != 'OPTIONS')}",
    )
