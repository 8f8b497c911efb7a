"""The tasks: all sums of two digits, none of them on both sides."""

from __future__ import annotations

import re

from agentrl.testing import AgentConformance, TaskSetConformance
from agentrl_smollm2.sums import held_out_sums, sums

pytest_plugins = ["agentrl.testing"]


class TestSums(TaskSetConformance):
    tasks = "one-digit-sums"


class TestHeldOutSums(TaskSetConformance):
    tasks = "one-digit-sums-heldout"


class TestAgent(AgentConformance):
    agent = "one-digit-sums"
    tasks = "one-digit-sums"


def operands(tasks) -> list[frozenset[str]]:
    return [frozenset(re.findall(r"\d", task["question"])) for task in tasks]


def test_no_sum_is_trained_on_and_evaluated_in_either_order():
    assert (len(sums()), len(held_out_sums())) == (76, 24)
    assert len({task["question"] for task in sums() + held_out_sums()}) == 100
    assert set(operands(sums())).isdisjoint(operands(held_out_sums()))
