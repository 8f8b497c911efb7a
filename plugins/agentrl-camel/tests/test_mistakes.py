"""What the policy may do wrong, and what else may go wrong."""

from __future__ import annotations

import json

import pytest
from camel.terminators import ResponseWordsTerminator
from natives import Play, call, elsewhere, solver
from pydantic import BaseModel

from agentrl import BackendError, ConfigError, PolicyError
from agentrl.rollout.failures import attribute
from agentrl.testing import Truncated


class Answer(BaseModel):
    number: int


class TestTheEpisodeEnds:
    @pytest.mark.parametrize("arguments", ['{"expression": ', "[1, 2]", '"47+38"', "{'expression': 1}"])
    def test_at_arguments_that_are_no_json_object(self, arguments: str, play: Play) -> None:
        played = play(solver(), f"Let me see.\n{call(arguments=arguments)}")
        assert isinstance(played.answer, PolicyError), played.answer
        assert "'calculator'" in str(played.answer)
        assert played.answer.answer == "Let me see."
        assert len(played.calls) == 1

    def test_at_an_empty_answer(self, play: Play) -> None:
        played = play(solver(), f"Let me see.\n{call()}", "  ")
        assert isinstance(played.answer, PolicyError)
        assert (str(played.answer), played.answer.answer) == ("the policy said nothing", "Let me see.")

    @pytest.mark.parametrize(("own", "kwargs", "calls"), [(None, {}, 16), (2, {}, 2), (2, {"max_iteration": 3}, 3)])
    def test_after_so_many_calls(self, own: int | None, kwargs: dict[str, int], calls: int, play: Play) -> None:
        played = play(solver(max_iteration=own), f"Once more.\n{call()}", **kwargs)
        assert isinstance(played.answer, PolicyError)
        assert f"after {calls} calls" in str(played.answer)
        assert (len(played.calls), played.answer.answer) == (calls, "Once more.")

    def test_when_it_never_says_what_ends_the_conversation(self, play: Play) -> None:
        agent = solver(response_terminators=[ResponseWordsTerminator({"DONE": 1})], max_iteration=3)
        played = play(agent, "Not yet.")
        assert isinstance(played.answer, PolicyError)
        assert len(played.calls) == 3

    def test_at_a_structured_answer_without_an_end(self, play: Play) -> None:
        agent = solver(model=elsewhere(response_format=Answer), tools=[])
        played = play(agent, Truncated('{"number": 8'), override={"response_format": None})
        assert isinstance(played.answer, PolicyError), played.answer
        assert played.answer.answer == '{"number": 8'


class TestTheConversationGoesOn:
    @pytest.mark.parametrize(
        ("said", "told"),
        [
            (call("abacus"), "Tool 'abacus' not found"),
            (call(arguments='{"number": 7}'), "unexpected keyword argument 'number'"),
            (call(arguments='{"expression": "seven"}'), "invalid literal for int()"),
            (call(arguments="{}"), "missing 1 required positional argument"),
            (call(arguments="null"), "missing 1 required positional argument"),
        ],
    )
    def test_after_a_call_that_makes_no_sense(self, said: str, told: str, play: Play) -> None:
        played = play(solver(), said, "It is 85.")
        assert played.answer == "It is 85."
        assert told in played.said()[-1][1]

    def test_after_json_that_a_tool_cannot_read(self, play: Play) -> None:
        def calculator(expression: str) -> str:
            """Reads.

            Args:
                expression: Anything.
            """
            return str(json.loads("{broken"))

        played = play(solver(tools=[calculator]), call(), "It is 85.")
        assert played.answer == "It is 85."
        assert "Tool execution failed" in played.said()[-1][1]


class TestFailures:
    def test_a_limit_that_leaves_no_call_is_refused(self, play: Play) -> None:
        error = play(solver(), "85", max_iteration=0).answer
        assert isinstance(error, ConfigError)
        assert "max_iteration=0" in str(error)

    def test_a_request_that_the_gateway_refuses_is_its_failure(self, play: Play) -> None:
        played = play(solver(model=elsewhere(temperature=0.0)), "85")
        failure = attribute(played.answer, played.refusals)
        assert (failure.side, len(played.refusals)) == ("gateway", 1)
        assert "rollout.override" in failure.reason

    def test_a_backend_that_breaks_is_its_failure(self, play: Play) -> None:
        played = play(solver(), BackendError("out of memory"))
        failure = attribute(played.answer, played.refusals)
        assert (failure.side, failure.reason) == ("backend", "out of memory")
        assert len(played.refusals) <= 3
