"""What the policy gets wrong is an outcome, and the same whichever version of the SDK runs it."""

from __future__ import annotations

from typing import Any

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    RunContextWrapper,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrailData,
    function_tool,
    input_guardrail,
    output_guardrail,
    tool_input_guardrail,
)
from pydantic import BaseModel

from agentrl.testing import Truncated, tool_call


@function_tool
def add(left: int, right: int) -> int:
    """The sum of two numbers."""
    return left + right


ADDER = Agent(name="Adder", instructions="Add.", tools=[add])
CALL = tool_call("add", {"left": 47, "right": 38})
BROKEN = '<tool_call>\n{"name": "add", "arguments": {"left": 47, "right": }}\n</tool_call>'


@pytest.fixture
def answered(heard: Any) -> Any:
    """Gives what tools answered in an episode."""

    def answered(played: Any) -> list[str]:
        return [message["content"] for message in heard(played.episode.calls[-1]) if message["role"] == "tool"]

    return answered


def test_an_unknown_tool_is_told_to_the_policy_which_goes_on(play: Any, answered: Any) -> None:
    played = play(ADDER, tool_call("subtract", {}), CALL, "It is 85.")
    assert answered(played) == ["Tool 'subtract' not found.", "85"]
    assert played.episode.reward == 1.0
    assert [call.fork_reason for call in played.episode.calls] == [None, None, None]


def test_a_good_call_beside_an_unknown_one_is_done(play: Any, answered: Any) -> None:
    played = play(ADDER, f"{tool_call('subtract', {})}\n{CALL}", "It is 85.")
    assert sorted(answered(played)) == ["85", "Tool 'subtract' not found."]
    assert len(played.episode.calls) == 2


@pytest.mark.parametrize("call", [BROKEN, tool_call("add", {}), tool_call("add", {"left": "x", "right": 1})])
def test_arguments_that_do_not_fit_are_told_to_the_policy_which_goes_on(play: Any, answered: Any, call: str) -> None:
    played = play(ADDER, call, "It is 85.")
    assert len(answered(played)) == 1
    assert answered(played)[0].startswith("An error occurred")
    assert (played.episode.reward, len(played.episode.calls)) == (1.0, 2)


def test_the_turn_limit_leaves_the_last_words_to_be_scored(play: Any) -> None:
    played = play(ADDER, f"I think 85.\n{CALL}", CALL, max_turns=2)
    assert (played.episode.outcome, played.episode.answer, played.episode.reward) == ("rewarded", "I think 85.", 1.0)
    assert played.episode.mistake == "turn limit: Max turns (2) exceeded"


def test_a_policy_that_never_says_anything_has_said_nothing(play: Any) -> None:
    played = play(ADDER, CALL, max_turns=2)
    assert (played.episode.limit, played.episode.answer, played.episode.reward) == ("turns", None, 0.0)


def test_the_sdks_own_turn_limit_holds_where_none_is_set(play: Any) -> None:
    assert len(play(ADDER, CALL).episode.calls) == 10


class Sum(BaseModel):
    total: int


@pytest.mark.parametrize("text", ["It is 85.", '{"sum": 85}', '{"total": "85"', Truncated('{"total": 85')])
def test_output_that_does_not_have_its_form_is_scored_as_it_was_written(play: Any, text: Any) -> None:
    played = play(Agent(name="Adder", output_type=Sum), text, override={"response_format": None})
    assert played.episode.outcome == "rewarded"
    assert played.episode.answer == getattr(text, "text", text)
    assert played.episode.mistake.startswith(("Invalid JSON", "Responses stream ended"))


def test_a_tool_that_leaves_bad_arguments_to_its_caller_ends_the_episode(play: Any) -> None:
    careless = function_tool(lambda: 85, name_override="add", failure_error_function=None)
    played = play(Agent(name="Adder", tools=[careless]), f"So 85.\n{BROKEN}")
    assert (played.episode.reward, len(played.episode.calls)) == (1.0, 1)
    assert played.episode.mistake.startswith(("Invalid JSON", "Responses stream ended"))


@output_guardrail
async def politeness(context: RunContextWrapper[Any], agent: Agent[Any], output: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered="please" not in str(output))


def test_an_answer_that_a_guardrail_stops_is_none(play: Any) -> None:
    agent = Agent(name="Polite", output_guardrails=[politeness])
    stopped = play(agent, "It is 85.").episode
    assert (stopped.outcome, stopped.answer, stopped.reward) == ("rewarded", "", 0.0)
    assert stopped.mistake == "the output guardrail 'politeness' stopped the answer"
    assert play(agent, "It is 85, please.").episode.reward == 1.0


@tool_input_guardrail
def small_numbers(data: ToolInputGuardrailData) -> ToolGuardrailFunctionOutput:
    return ToolGuardrailFunctionOutput.raise_exception()


def test_a_call_that_a_guardrail_stops_is_the_policys_mistake(play: Any) -> None:
    guarded = function_tool(lambda: 85, name_override="add", tool_input_guardrails=[small_numbers])
    played = play(Agent(name="Adder", tools=[guarded]), f"So 85.\n{tool_call('add', {})}")
    assert played.episode.answer == "So 85."
    assert played.episode.mistake.startswith("Tool input guardrail")


@input_guardrail
async def no_homework(context: RunContextWrapper[Any], agent: Agent[Any], given: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)


def test_a_task_that_a_guardrail_turns_away_fails_on_the_agents_side(play: Any) -> None:
    failure = play(Agent(name="Tutor", input_guardrails=[no_homework]), "It is 85.").episode.failure
    assert failure.side == "agent"
    assert "the input guardrail 'no_homework' turned the task away" in failure.reason
