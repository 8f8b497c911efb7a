"""The conformance suite of dialects."""

from __future__ import annotations

import pytest

from agentrl.errors import ConfigError
from agentrl.gateway.dialects.chat import ChatCompletions
from agentrl.gateway.routes import Routes
from agentrl.testing.dialects.answers import Answers
from agentrl.testing.dialects.bench import Bench
from agentrl.testing.dialects.description import Description
from agentrl.testing.dialects.reading import Reading
from agentrl.testing.dialects.streams import Streams

__all__ = ["DialectConformance"]

_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE"}


class DialectConformance(Description, Streams, Answers, Reading):
    """Tests of one dialect. Subclass it with a name that begins with ``Test``, and set ``dialect`` and ``asks``."""

    def test_its_routes_can_be_served_beside_chat_completions(self, bench: Bench) -> None:
        routes = bench.dialect.routes
        assert routes, "it has no routes"
        for route in routes:
            assert route.path.startswith("/"), f"the path {route.path!r} does not begin with a slash"
            assert not route.path.startswith("/v1/"), f"the path {route.path!r} holds the /v1 that base URLs end in"
            unknown = set(route.methods) - _METHODS
            assert not unknown, f"{route.path} names methods that are none, or that come by themselves: {unknown}"
        if isinstance(bench.dialect, ChatCompletions):
            return
        try:
            Routes([ChatCompletions(), bench.dialect])
        except ConfigError as error:
            pytest.fail(f"no run could serve it: {error}", pytrace=False)
