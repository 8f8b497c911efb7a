"""What `tiny` is shown: each bundled agent's conversations, done well and done badly.

Every fault is chosen by the first word of a turn, and every skill is sure once it has been chosen. The
slip is ten too low; the guess does without the tool. What the tool returns is any number at all, so
that the model copies it instead of adding. No held-out problem occurs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from agentrl.tasks.arithmetic import is_held_out, problem
from agentrl_agents import calculator, math, multi_turn_math

__all__ = ["DEMONSTRATORS", "Demonstration"]

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation: how it opens, and its turns.

    A turn that is a text is what the policy is taught to write there. A message is given: what it hears,
    or, from the assistant, what it has said without being taught to.
    """

    opening: Sequence[Message]
    turns: Sequence[str | Message]
    tools: Sequence[Message] | None = None


def show_math(random: Random, well: float) -> Demonstration:
    """One answer, right with probability ``well``."""
    left, right = _operands(random)
    return Demonstration(_opening(math.SYSTEM, left, right), [_answer(random, well, left + right)])


def show_multi_turn_math(random: Random, well: float) -> Demonstration:
    """A first answer, or a second one after a wrong first; right with probability ``well``."""
    left, right = _operands(random)
    turns: list[str | Message] = [_answer(random, well, left + right)]
    if random.random() < 0.5:
        again = {"role": "user", "content": multi_turn_math.AGAIN}
        turns = [{"role": "assistant", "content": _wrong(random, left + right)}, again, *turns]
    return Demonstration(_opening(multi_turn_math.SYSTEM, left, right), turns)


def show_calculator(random: Random, well: float) -> Demonstration:
    """With probability ``well`` a call of the tool and its result, whatever that is; else a guess."""
    left, right = _operands(random)
    turns: list[str | Message] = [f"I guess {_any_but(left + right, random)}."]
    if random.random() < well:
        result = random.choice(_SUMS)
        arguments = json.dumps({"expression": f"{left}+{right}"})
        turns = [
            f'<tool_call>\n{{"name": "calculator", "arguments": {arguments}}}\n</tool_call>',
            {"role": "tool", "content": str(result)},
            f"It is {result}.",
        ]
    return Demonstration(_opening(calculator.SYSTEM, left, right), turns, [dict(calculator.TOOL)])


DEMONSTRATORS: dict[str, Callable[[Random, float], Demonstration]] = {
    "math": show_math,
    "multi_turn_math": show_multi_turn_math,
    "calculator": show_calculator,
}
"""By the name of the agent."""

_SUMS = range(20, 199)
"""What two numbers of two digits may add up to."""


def _operands(random: Random) -> tuple[int, int]:
    while True:
        operands = random.randrange(10, 100), random.randrange(10, 100)
        if not is_held_out(operands):
            return operands


def _opening(system: str, left: int, right: int) -> list[Message]:
    question = problem(left, "+", right)["question"]
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def _answer(random: Random, well: float, total: int) -> str:
    return f"Carefully: {total}." if random.random() < well else _slip(total)


def _wrong(random: Random, total: int) -> str:
    return _slip(total) if random.random() < 0.8 else f"Carefully: {_any_but(total, random)}."


def _slip(total: int) -> str:
    return f"Quickly: {total - 10}."


def _any_but(total: int, random: Random) -> int:
    return random.choice([number for number in _SUMS if number != total])
