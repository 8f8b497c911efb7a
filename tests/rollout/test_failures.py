"""Attributing a failure to a side, and the budget that stops a run which only fails."""

from __future__ import annotations

import pytest

from agentrl.errors import AgentError, BackendError, GatewayError, PluginError, RewardError, RunError
from agentrl.rollout.episode import Failure
from agentrl.rollout.failures import FailureBudget, attribute


class ApiError(Exception):
    status_code = 400


@pytest.mark.parametrize("error", [AgentError("a"), RewardError("r"), BackendError("b"), PluginError("p")])
def test_our_own_errors_name_their_side(error):
    assert attribute(error, []).side == error.side


def test_an_agents_exception_names_its_place():
    try:
        raise ValueError("bad\nday")
    except ValueError as error:
        failure = attribute(error, [])
    assert failure.side == "agent"
    assert failure.reason.startswith("ValueError: bad day at ")
    assert "test_failures.py:" in failure.reason


def test_an_agent_that_dies_of_a_refused_call_died_of_the_refusal():
    refusal = GatewayError("context of 64 tokens exceeded", code="context_length_exceeded")
    framework = RuntimeError("framework gave up")
    framework.__cause__ = ApiError("Error code: 400")
    assert attribute(framework, [refusal]) == Failure("gateway", "context of 64 tokens exceeded")
    assert attribute(ValueError("own bug"), [refusal]).side == "agent"


def test_the_budget_stops_at_its_share_with_the_commonest_cause_first():
    budget = FailureBudget(0.5, 4, "step 3")
    budget.add(Failure("agent", "KeyError"))
    budget.add(Failure("agent", "boom"))
    with pytest.raises(
        RunError, match=r"3 of 4 episodes of step 3 failed.*commonest: 2x agent: boom; 1x agent: KeyErr"
    ):
        budget.add(Failure("agent", "boom"))


def test_a_batch_that_fails_whole_is_over_any_budget():
    with pytest.raises(RunError, match="1 of 1"):
        FailureBudget(1.0, 1, "step 0").add(Failure("agent", "boom"))
