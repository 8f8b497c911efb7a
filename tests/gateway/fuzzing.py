"""Schema-driven fuzzing: requests made from the gateway's own OpenAPI document, valid ones and broken ones.

No request is answered with a 5xx or hangs, every answer is as the document says, and a refused request leaves no trace.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from schemathesis import checks as _checks
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode

from agentrl.gateway import EngineCompleter, Gateway, Session, SessionSettings
from agentrl.gateway.gateway import registered_dialects
from agentrl.gateway.openapi import document
from agentrl.gateway.queueing import QueueLimit
from agentrl.gateway.service import SessionService
from agentrl.plugins import Plugins
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.testing import ScriptedBackend
from agentrl.training.parts import ANY_ENGINE

__all__ = ["OPERATIONS", "Target", "fuzz", "target"]

ADMIN = "the-admin-key-of-the-fuzzer"
DEADLINE_S = 60
"""Seconds after which a request counts as hanging."""

CALL = '<tool_call>\n{"name": "calculate", "arguments": {"n": 12}}\n</tool_call>'
SAYS = ("It is 408.", f"Let me see.\n{CALL}", "<think>\n12 * 34\n</think>\n\n408", "")


def _fail(warning: str) -> None:
    raise AssertionError(warning)


@dataclass
class Target:
    """A gateway that is fuzzed: every dialect that is installed here, and the sessions' service."""

    gateway: Gateway
    session: Session
    schema: Any
    http: requests.Session
    stored: dict[EpisodeKey, Episode]
    statuses: defaultdict[tuple[str, str, bool], Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    """How often each status was answered, by method, path and whether the request was broken."""

    def known(self, path: str) -> dict[str, str]:
        """Values of parameters at which there is something, by name."""
        if not path.startswith("/responses"):
            return {"id": self.session.id, "name": "policy"}
        key, asked = {"x-api-key": self.session.api_key}, {"input": "What is 12 * 34?"}
        kept = self.http.post(f"{self.gateway.url}/v1/responses", json=asked, headers=key).json()
        return {"response": kept["id"]}

    def trace(self) -> tuple[int, int, int]:
        """What a refused request must not change."""
        return len(self.session.calls), len(self.session.tree.spans), len(self.stored)


def _served() -> list[tuple[str, str]]:
    owners = (*registered_dialects(Plugins(), _fail), SessionService)
    described = document([owner for owner in owners if owner is not SessionService])["paths"]
    served = [(method.upper(), path) for path, methods in described.items() for method in methods]
    return served + [(m, route.path) for route in SessionService.routes for m in route.methods]


OPERATIONS = _served()
"""Every method and path that is served."""


@contextlib.contextmanager
def target() -> Iterator[Target]:
    """A gateway with an open session, in which there is a response to ask for."""
    stored: dict[EpisodeKey, Episode] = {}

    async def finished(episode: Episode) -> None:
        stored[episode.key] = episode

    turns = iter(range(10**9))
    backend = ScriptedBackend(lambda prompt: SAYS[next(turns) % len(SAYS)])
    completer = EngineCompleter(backend, replace(ANY_ENGINE, context_length=4096, max_concurrency=64), backend.renderer)
    gateway = Gateway(
        QueueLimit(completer, running=64, waiting=10_000), registered_dialects(Plugins(), _fail), body_limit=2**20
    )
    service = SessionService(
        gateway.open_session,
        lambda: SessionSettings(training=True),
        admin_key=ADMIN,
        finished=finished,
        recall=stored.__getitem__,
    )
    gateway.attach(service)
    gateway.start()
    http = requests.Session()
    http.trust_env = False
    try:
        # One that is not trained grants more: valid requests are to be answered as well as refused.
        opened = http.post(f"{gateway.url}/v1/sessions", json={"training": False}, headers={"x-api-key": ADMIN}).json()
        session = next(each for each in gateway._sessions.all() if each.id == opened["id"])
        base = f"{gateway.url}/v1"
        described = http.get(f"{base}/openapi.json").json()
        for methods in described["paths"].values():
            for operation in methods.values():
                operation["security"] = []  # The key is sent with every request: what is broken is the rest of it.
        schema = schemathesis.openapi.from_dict(described, config=SchemathesisConfig())
        yield Target(gateway, session, schema, http, stored)
    finally:
        http.close()
        gateway.stop()


CHECKS = [
    _checks.not_a_server_error,
    *(
        check
        for check in _checks.CHECKS.get_all()
        if check.__name__
        in {
            "status_code_conformance",
            "content_type_conformance",
            "response_headers_conformance",
            "response_schema_conformance",
            "negative_data_rejection",
        }
    ),
]


def fuzz(target: Target, method: str, path: str, *, broken: bool, known: bool, examples: int, seed: int = 0) -> None:
    """Send ``examples`` requests to one operation, ``broken`` ones or valid ones.

    ``known`` asks for what there is where a request names something, instead of for whatever the schema allows.
    """
    operation = target.schema[path][method]
    mode = GenerationMode.NEGATIVE if broken else GenerationMode.POSITIVE
    there = target.known(path) if known else {}
    named = {name: value for name, value in there.items() if f"{{{name}}}" in path}
    fixed = {"path_parameters": named} if named else {}
    admin = path.startswith("/sessions")
    key = ADMIN if admin else target.session.api_key

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode, **fixed))
    def send(case: Any) -> None:
        before = target.trace()
        if known and path.startswith("/responses") and isinstance(case.body, dict):
            case.body = {"input": "What is 12 * 34?", **case.body}
            if isinstance(case.body.get("previous_response_id"), str):
                case.body["previous_response_id"] = there["response"]
        response = case.call(
            base_url=f"{target.gateway.url}/v1",
            session=target.http,
            headers={"authorization": f"Bearer {key}"},
            timeout=DEADLINE_S,
        )
        target.statuses[method, path, broken][response.status_code] += 1
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            assert target.trace() == before, f"{response.status_code} left a trace"

    send()
