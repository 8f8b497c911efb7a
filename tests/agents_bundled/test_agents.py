"""What the bundled agents ask, what they make of the answers, and what they pay for them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.agents_bundled.conftest import TASK, Play

from agentrl.agents.binding import bind_agent
from agentrl.errors import AgentError, ConfigError, PolicyError, RewardError
from agentrl.plugins import Plugins

AGENTS = ("math", "multi_turn_math", "calculator")


def tool_call(expression: str, name: str = "calculator") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps({"expression": expression})}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "reward"), [("It is 85.", 1.0), ("47 + 38 = 86", 0.0), ("Who knows?", 0.0), ("", 0.0)]
)
def test_math_asks_once_and_pays_for_the_last_number(play: Play, text: str, reward: float) -> None:
    played = play("math", text)
    assert played.result == reward
    [call] = played.calls
    assert call.request["messages"][-1] == {"role": "user", "content": TASK["question"]}


@pytest.mark.parametrize(
    ("texts", "rewards"),
    [
        (["85"], [1.0]),
        (["75", "85"], [0.0, 0.5]),
        (["75", "75"], [0.0, 0.0]),
        (["", "85"], [0.0, 0.5]),
    ],
)
def test_multi_turn_math_pays_each_answer_and_an_early_one_most(
    play: Play, texts: list[str], rewards: list[float]
) -> None:
    played = play("multi_turn_math", *texts)
    assert played.result == dict(zip([call.id for call in played.calls], rewards, strict=True))


def test_multi_turn_math_tries_as_often_as_it_is_told(play: Play) -> None:
    played = play("multi_turn_math", "1", "2", "85", max_turns=4)
    assert list(played.result.values()) == [0.0, 0.0, 0.25]


def test_another_try_extends_the_recorded_conversation(play: Play) -> None:
    first, second = play("multi_turn_math", "75", "85").calls
    assert (second.parent, second.fork_reason) == (first.id, None)


def test_calculator_hears_the_result_of_what_it_asked(play: Play) -> None:
    played = play("calculator", tool_call("47+38"), "It is 85.")
    assert played.result == 1.0
    assert played.heard == ["85"]
    assert [(call.parent is None, call.fork_reason) for call in played.calls] == [(True, None), (False, None)]


@pytest.mark.parametrize(("text", "reward"), [("I guess 62.", 0.0), ("I guess 85.", 1.0)])
def test_calculator_may_answer_without_the_tool(play: Play, text: str, reward: float) -> None:
    played = play("calculator", text)
    assert (played.result, len(played.calls)) == (reward, 1)


@pytest.mark.parametrize(
    ("call", "heard"),
    [
        (tool_call("47 +"), "Error: cannot evaluate '47 +'"),
        (tool_call("47/0"), "Error: only numbers, + - * and brackets are allowed"),
        (tool_call("__import__('os')"), "Error: only numbers, + - * and brackets are allowed"),
        (tool_call("47+38", name="abacus"), "Error: the only tool is calculator"),
        (tool_call("x").replace("expression", "query"), "Error: the arguments are"),
        ('<tool_call>\n{"name": "calculator", "arguments": [1]}\n</tool_call>', "Error: the arguments are"),
        (
            '<tool_call>\n{"name": "calculator", "arguments": {"expression": 4}}\n</tool_call>',
            "Error: an expression is",
        ),
        ('<tool_call>\n{"name": "calculator", "arguments": {"expression": "4}\n</tool_call>', "Error"),
    ],
)
def test_a_call_that_makes_no_sense_is_told_so_and_the_episode_goes_on(play: Play, call: str, heard: str) -> None:
    played = play("calculator", call, "So 85.")
    assert played.result == 1.0
    assert len(played.heard) == 1
    assert played.heard[0].startswith(heard)


def test_calculator_answers_several_calls_of_one_turn(play: Play) -> None:
    played = play("calculator", f"{tool_call('47+38')}\n{tool_call('2*3')}", "85")
    assert played.heard == ["85", "6"]


def test_calculator_gives_up_at_its_turn_limit(play: Play) -> None:
    for turns in (3, 1):
        with pytest.raises(PolicyError, match=f"no answer within {turns} turns") as caught:
            play("calculator", *[tool_call("1+1")] * turns, max_turns=turns)
        assert caught.value.limit == "turns"


@pytest.mark.parametrize("agent", AGENTS)
def test_numbers_of_any_spelling_and_other_task_sets_are_scored(play: Play, agent: str) -> None:
    data = {"question": "How much?", "answer": "1200", "solution": "9 + 9"}
    played = play(agent, "It costs $1,200.00", data=data)
    result = played.result if agent != "multi_turn_math" else sum(played.result.values())
    assert result == 1.0


@pytest.mark.parametrize("agent", AGENTS)
def test_a_task_that_lacks_a_field_is_refused_by_its_name(play: Play, agent: str) -> None:
    with pytest.raises(AgentError, match="no text in a field 'question', only 'prompt'"):
        play(agent, data={"prompt": "2 + 2?"})
    with pytest.raises(RewardError, match="no field 'answer' to score against, only 'question'"):
        play(agent, "4", data={"question": "2 + 2?"})


@pytest.mark.parametrize("agent", AGENTS)
def test_a_kwarg_that_no_agent_takes_is_refused(agent: str) -> None:
    kwargs: dict[str, Any] = {"max_turn": 3}
    with pytest.raises(ConfigError, match="max_turn"):
        bind_agent(Plugins().get("agents", agent), kwargs, name=agent)
