"""Arithmetic in text, worked out without running it."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

__all__ = ["evaluate"]

_Number = int | float

_OPERATORS: dict[type[ast.operator], Callable[[_Number, _Number], _Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_LONGEST = 200


def evaluate(expression: str) -> _Number:
    """The value of numbers, ``+ - *`` and brackets. Raises ``ValueError`` for anything else."""
    if not isinstance(expression, str) or len(expression) > _LONGEST:
        raise ValueError(f"an expression is a text of at most {_LONGEST} characters")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, OverflowError) as error:
        raise ValueError(f"cannot evaluate {expression!r}") from error


def _value(node: ast.expr) -> _Number:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left), _value(right))
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand)
        case _:
            raise ValueError("only numbers, + - * and brackets are allowed")
