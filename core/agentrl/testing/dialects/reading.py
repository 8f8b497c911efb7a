"""The part of a dialect's suite about requests: what is read, what is refused, and what an override changes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from agentrl.errors import GatewayError
from agentrl.testing.dialects.bench import Bench, DialectSuite, shown, whole

__all__ = ["Reading"]

UNKNOWN = "no_such_field"
_VALUES: tuple[Any, ...] = (
    None,
    True,
    17,
    -1.5,
    10**30,
    math.nan,
    "",
    "x",
    [],
    {},
    [17],
    [None],
    [{}],
    [[["x"]]],
    {"x": 1},
    {"type": 3},
    {"type": "x"},
    [{"type": "x"}],
)
_STATUSES = (400, 401, 404, 405, 408, 409, 413, 422, 429, 431, 500, 503)
_MESSAGE = 'the field "x" is \\wrong, and half a character \ud83d too'


class Reading(DialectSuite):
    """Tests of what a request may say."""

    def test_a_request_asks_the_model_what_it_says(self, bench: Bench) -> None:
        for body in self.asks:
            parsed = bench.parsed(body)
            assert parsed.asked, f"{shown(body)} asks for no completion"
            ids = [each.call_id for each in parsed.asked]
            assert len(set(ids)) == len(ids), f"{shown(body)}: two calls have one id"
            for each in parsed.asked:
                assert each.messages or each.prompt, f"{shown(body)}: a request without messages"
                assert not each.stream, f"{shown(body)} is streamed, and does not ask for it"
                assert each.body is parsed.request.body, "the body of a request is what is recorded"

    def test_a_field_that_is_not_known_is_refused_by_its_name(self, bench: Bench) -> None:
        if not self.strict:
            pytest.skip("it takes fields that it does not know: `strict` is false")
        body = {**self.asks[0], UNKNOWN: "x"}
        error = bench.refusal(body)
        assert error is not None, f"{UNKNOWN!r} is ignored: whoever sends it believes that it works"
        assert 400 <= error.status < 500, f"{UNKNOWN!r} is refused with {error.status}, which clients send again"
        assert UNKNOWN in str(error), f"the refusal of {UNKNOWN!r} does not name it: {error}"

    def test_no_value_of_a_field_is_more_than_refused(self, bench: Bench) -> None:
        for body in self.asks:
            for name in body:
                for value in _VALUES:
                    error = bench.refusal({**body, name: value})
                    assert error is None or 400 <= error.status < 500, f"{name}={value!r} is a {error.status}"

    def test_what_is_refused_leaves_no_trace_and_the_session_goes_on(self, bench: Bench) -> None:
        body = self.asks[0]
        wrong = next(
            (broken for name in body for value in _VALUES if bench.refusal(broken := {**body, name: value})), None
        )
        assert wrong is not None, f"nothing is wrong with any value of {', '.join(body)}"
        with bench.session() as (session, ask):
            assert 400 <= ask(wrong).status_code < 500
            assert not session.calls
            assert ask(body).status_code < 300
            assert len(session.calls) == len(bench.parsed(body).asked)

    def test_every_error_is_written(self, bench: Bench) -> None:
        for status in _STATUSES:
            for param in (None, "x"):
                error = GatewayError(_MESSAGE, status=status, code="some_code", param=param, fix="mend it")
                reply = bench.dialect.refuse(error)
                assert isinstance(reply.body, bytes), f"the body of a {status} is to be bytes"
                assert reply.status >= 400, f"an error {status} is answered with {reply.status}"
                text = whole(reply).decode("utf-8", "strict")
                for word in ("the field", "wrong", "mend it"):
                    assert word in text, f"a {status} does not say {word!r}: {text}"

    def test_an_override_replaces_a_field_and_drops_it(self, bench: Bench) -> None:
        if not self.overrides:
            pytest.skip("the protocol has no such field: `overrides` is empty")
        body = self.asks[0]
        for name, value in self.overrides.items():
            set_, names = bench.dialect.override(body, {name: value})
            assert set(names) <= set(body), f"override says that it changed {names}, and the body has {list(body)}"
            for each in bench.parsed(set_).asked:
                assert each.fields.get(name) == value, f"rollout.override.{name}={value!r} comes to {dict(each.fields)}"
            again, names = bench.dialect.override(set_, {name: value})
            assert (again, names) == (set_, ()), "an override that is there already is counted as a change"
            dropped, names = bench.dialect.override(set_, {name: None})
            assert names, f"rollout.override.{name}=null drops {name}, and override does not say so"
            for each in bench.parsed(dropped).asked:
                assert name not in each.fields, f"rollout.override.{name}=null leaves {dict(each.fields)}"
