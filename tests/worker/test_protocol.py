"""Messages: what arrives as it was, what is refused with its place, and errors across the border."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from agentrl.agents.watchdog import Blocked
from agentrl.errors import AgentError, ConfigError, PolicyError
from agentrl.worker.protocol import decode, encode, error_from_json, error_to_json, unfit


class Settings(dict):
    pass


class ToolMissing(PolicyError):
    pass


def sent(value: object) -> object:
    return decode(encode({"type": "x", "value": value}))["value"]


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.5, "Größe \u2028 \ud800", [1, {"a": []}], {"": None}, float("inf"), 2**80, Settings(a=1)],
)
def test_plain_values_arrive_as_they_are(value):
    assert unfit(value, "x") is None
    assert sent(value) == value


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(2), 2),
        (Decimal("0.25"), 0.25),
        (Fraction(1, 4), 0.25),
        ((1, 2), [1, 2]),
    ],
)
def test_numbers_of_any_kind_and_tuples_arrive_as_pythons_own(value, arrives):
    assert unfit(value, "x") is None
    assert sent(value) == arrives
    assert type(sent(value)) is type(arrives)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [0, {1, 2}]}, "x['a'][1], a set"),
        ({"a": {1: 0.5}}, "the key 1 of x['a'], a int"),
        (b"bytes", "x, a bytes"),
        ([object()], "x[0], a object"),
        (np.zeros(2), "x, a ndarray"),
    ],
)
def test_what_json_cannot_carry_is_named_with_its_place(value, place):
    assert unfit(value, "x") == place


def test_values_without_an_end_are_named():
    circle: list[object] = []
    circle.append({"again": circle})
    assert unfit(circle, "x") == "x[0]['again'], which contains itself"
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert unfit(deep, "x") == "x, which is nested too deeply"


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"hello\n", b"[1]\n", b'{"id": 1}\n', b'{"type": 3}\n', b"\xff\n", b"[" * 100_000]
)
def test_what_is_no_message_is_refused(line):
    with pytest.raises(ValueError):  # noqa: PT011  (whichever part of it found out)
        decode(line)


def test_our_own_errors_arrive_whole():
    for error in (ConfigError("no such key", fix="did you mean 'a'?"), PolicyError("no tool", answer={"a": [1]})):
        arrived = error_from_json(error_to_json(error))
        assert type(arrived) is type(error)
        assert vars(arrived) == vars(error) | {"fingerprint": error.message}


def test_a_class_derived_from_ours_arrives_as_ours():
    assert type(error_from_json(error_to_json(ToolMissing("no tool", answer=2)))) is PolicyError
    assert error_to_json(Blocked())["kind"] == "EpisodeTimeout"


def test_a_derived_class_that_never_called_ours_arrives():
    class Hasty(PolicyError):
        def __init__(self) -> None:
            pass

    arrived = error_from_json(error_to_json(Hasty()))
    assert isinstance(arrived, PolicyError)
    assert "Hasty" in arrived.message


@pytest.mark.parametrize("kind", ["KeyError", "difflib", "Side", "one_line", None])
def test_a_kind_that_is_no_error_of_ours_is_the_agents(kind):
    assert type(error_from_json({"kind": kind, "message": "m", "fix": None})) is AgentError
