"""The calculator's arithmetic: what Python says, for what is allowed, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl_agents.expressions import evaluate

numbers = st.integers(0, 999).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", " + "]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-({text})"),
    ),
    max_leaves=8,
)


@given(expressions)
def test_it_agrees_with_python(expression: str) -> None:
    assert evaluate(expression) == eval(expression)


def test_decimals_are_numbers() -> None:
    assert evaluate(" 1.5 * 2 ") == 3.0


@pytest.mark.parametrize(
    "expression",
    [
        "", "x", "2**9", "9/3", "1+", "f(1)", "[1]", "'a'*3", "True", "1 if 1 else 2", "1<2", "+1", "1j", "a.b",
        "0" * 201, "(" * 150 + "1" + ")" * 49, "1\n2", "\x00",
    ],
)  # fmt: skip
def test_anything_else_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r"cannot evaluate|are allowed|at most 200"):
        evaluate(expression)
