"""Attributing a failure to a side, and the budget that stops a run which only fails."""

from __future__ import annotations

import asyncio
import json
import secrets

import pytest

from agentrl.agents.result import as_result
from agentrl.errors import AgentError, BackendError, GatewayError, PluginError, PolicyError, RewardError, RunError
from agentrl.rewards.scoring import call_reward
from agentrl.rollout.contract import Activity, EpisodeKey, Failure
from agentrl.rollout.dispatcher import FailureBudget
from agentrl.rollout.failures import attribute, too_late
from agentrl.rollout.subproc.process import how_it_ended
from agentrl.rollout.subproc.worker import failure_of


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


def key(sample):
    return EpisodeKey("train", 3, 0, sample)


def test_the_budget_counts_failures_of_one_cause_as_one():
    budget = FailureBudget(0.5, 6)
    failures = [attribute(raised(lambda sample=sample: fail(sample)), []) for sample in range(4)]
    for sample in range(3):
        budget.add(key(sample), failures[sample])
    with pytest.raises(RunError, match=r"commonest: 4x agent: ValueError: no number in answer 0 at "):
        budget.add(key(3), failures[3])


def fail(sample):
    raise ValueError(f"no number in answer {sample}")


def raised(call):
    try:
        call()
    except Exception as error:
        return error


def rewarded(returned):
    return raised(lambda: as_result(returned, ["chatcmpl-1"]))


def scored(reward):
    return raised(lambda: asyncio.run(call_reward(reward, f"It is {secrets.token_hex(3)}.", {}, None)))


def unparsed(text):
    return raised(lambda: json.loads(text))


def passed_on(tool):
    def convert():
        error = RuntimeError(f"tool {tool!r} not found")
        raise PolicyError(str(error)) from error

    return raised(convert)


SAME = {
    "an agent's exception, whatever its text": lambda n: raised(lambda: fail(("It is four", "seven", "x")[n])),
    "a missing key": lambda n: raised(lambda: {}[f"field {'abc'[n]}"]),
    "what a library says of a text": lambda n: unparsed("x" * n),
    "a policy's mistake that names a tool": lambda n: passed_on(f"tool-{'abc'[n]}"),
    "a call id": lambda n: rewarded({secrets.token_hex(4): 1.0}),
    "what the agent returned": lambda n: rewarded("abc"[n]),
    "a reward's exception about an answer": lambda n: scored(lambda answer: float(answer)),
    "what a reward returned": lambda n: scored(lambda answer: f"{answer}!"),
    "a prompt's length": lambda n: GatewayError(f"{n} tokens", code="context_length_exceeded", param="messages"),
    "a request's field": lambda n: GatewayError(f"n={n!r} is not supported", code="unsupported_value", param="n"),
    "an address": lambda n: BackendError(f"http://127.0.0.1:{8000 + n}/v1 did not answer within {n + 0.5:g} s"),
    "a time": lambda n: too_late(n + 1, Activity(f"in the agent's own code, after {n} calls")),
    "a process's last words": lambda n: failure_of(1, 0, how_it_ended(3, None, f"line {'abc'[n]}"), None),
}


@pytest.mark.parametrize("made", SAME.values(), ids=SAME)
def test_failures_that_differ_in_ids_answers_and_numbers_have_one_cause(made):
    failures = [attribute(made(number)) for number in range(3)]
    assert len({failure.kind for failure in failures}) == 1
    assert failures[0].fingerprint


DIFFERENT = {
    "locations": (raised(lambda: fail(1)), raised(lambda: [].pop())),
    "exceptions of one place": tuple(raised(lambda text=text: float(text)) for text in ("x", [])),
    "library's reasons at one place": (unparsed(""), unparsed("1 1")),
    "mistakes passed on at one place": (passed_on("a"), raised(lambda: (_ for _ in ()).throw(PolicyError("no end")))),
    "codes of a refusal": (GatewayError("1", code="invalid_type", param="n"), GatewayError("1", code="x", param="n")),
    "words of our own": (BackendError("it did not answer"), BackendError("it did not start")),
    "exit codes": tuple(failure_of(1, 0, how_it_ended(code, None, ""), None) for code in (3, 4)),
}


@pytest.mark.parametrize("errors", DIFFERENT.values(), ids=DIFFERENT)
def test_failures_of_different_causes_are_told_apart(errors):
    one, other = map(attribute, errors)
    assert one.kind != other.kind


@pytest.mark.parametrize("text", ["a." * 50_000, "x" * 100_000, "'" * 100_000, "http:" * 20_000])
def test_a_message_of_any_length_has_a_cause_at_once(text):
    assert len(attribute(BackendError(text)).fingerprint) <= 300


def test_a_cause_can_be_named():
    kinds = {attribute(AgentError(f"no tool {name}", fingerprint="an unknown tool")).kind for name in ("add", "sub")}
    assert kinds == {"agent: an unknown tool"}


def test_a_failure_keeps_the_traceback_of_the_agents_code():
    failure = attribute(raised(lambda: fail(1)))
    assert failure.traceback.startswith("Traceback")
    assert 'raise ValueError(f"no number in answer {sample}")' in failure.traceback


def test_an_error_of_ours_that_was_never_initialised_is_a_failure_like_others():
    class Hasty(PolicyError):
        def __init__(self):
            pass

    assert attribute(Hasty()) == Failure("policy", "Hasty")
